"""The engine that the balance experiment runs on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.step_engine import Record, StepEngine, read_record, write_prompt, write_record
from gpupool.engines.base import Event, Failed, Finished, SamplingParams
from gpupool.partition import Slice
from gpupool.settings import Settings


@contextmanager
def engine_of(*flags: str) -> Iterator[StepEngine]:
    settings = Settings(HF_MODEL_NAME="none", INFER_TYPE="a.b:C", engine_args=flags)
    engine = StepEngine(settings, Slice(0, (), (0,)))
    engine.load(lambda phase, fraction: None)
    try:
        yield engine
    finally:
        engine.die()


class Sinks:
    """Keeps the last event of each request."""

    def __init__(self, engine: StepEngine) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        self._ends: dict[str, Event] = {}

    def start(self, name: str, num_tokens: int) -> None:
        def sink(event: Event) -> None:
            if isinstance(event, Finished | Failed):
                with self._changed:
                    self._ends[name] = event
                    self._changed.notify_all()

        prompt = self._engine.tokenize(write_prompt(num_tokens))
        self._engine.generate(name, prompt, SamplingParams(max_tokens=1000), sink)

    def record(self, name: str) -> Record:
        with self._changed:
            assert self._changed.wait_for(lambda: name in self._ends, 10)
        end = self._ends[name]
        assert isinstance(end, Finished), end
        return read_record(end.completions[0].text)


def test_a_step_of_the_engine_costs_more_with_a_larger_batch() -> None:
    with engine_of("--step-s", "0.02", "--batch-cost", "2", "--slots", "4") as engine:
        sinks = Sinks(engine)
        for index in range(4):
            sinks.start(f"one {index}", 5)
        sinks.start("after one", 1)
        passed_s = sinks.record("after one").first_at - sinks.record("one 3").first_at
    # Four steps or more of a full batch, of 0.06 s each; alone they would take half of that.
    assert passed_s > 0.2


def test_a_sequence_without_a_slot_waits_for_one() -> None:
    with engine_of("--step-s", "0.01", "--batch-cost", "1", "--slots", "1") as engine:
        sinks = Sinks(engine)
        sinks.start("first", 5)
        sinks.start("second", 1)
        waited = sinks.record("second").first_at - sinks.record("first").first_at
    # Five steps of 0.02 s, less what the first token was late; without the wait, one.
    assert waited > 0.06


def test_the_engine_gives_as_many_tokens_as_the_prompt_asks_for() -> None:
    with engine_of("--step-s", "0.001") as engine:
        sinks = Sinks(engine)
        sinks.start("one", 17)
        assert sinks.record("one").num_tokens == 17


def test_a_record_survives_the_wire() -> None:
    record = Record(4711, 12345.678901, 33)
    assert read_record(write_record(record)) == record
