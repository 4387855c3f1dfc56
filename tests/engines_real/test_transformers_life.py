"""The transformers engine under pressure, cancelled, broken and ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gpupool.engines.base import Failed, SamplingParams
from gpupool.engines.transformers import TransformersEngine
from gpupool.errors import Cancelled, EngineDead
from gpupool.partition import Slice
from gpupool.settings import Settings
from tests.demo_model import model_folder
from tests.engines_real.transformers_engine import (
    Answer,
    Client,
    completion_of,
    loaded_engine,
    wait_until,
)

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

SLOTS = 4
BLOCKS = 4  # of 256 tokens


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A narrow engine: few slots, and a cache that they can outgrow."""
    args = ("--max-num-seqs", str(SLOTS), "--num-blocks", str(BLOCKS))
    with loaded_engine(*args) as engine:
        yield Client(engine)


def error_of(answer: Answer) -> Exception:
    end = answer.last()
    assert isinstance(end, Failed), end
    return end.error


def held_blocks(client: Client) -> int:
    batch = client.engine._batch
    assert batch is not None
    allocators = batch.cache.cache_allocators.values()
    return sum(len(blocks) for allocator in allocators for blocks in allocator.block_table.values())


def test_context_is_what_the_cache_holds(client: Client) -> None:
    assert client.engine.model.context_tokens == BLOCKS * 256


def test_slots_are_the_sequences_of_a_step(client: Client) -> None:
    assert client.engine.model.slots == SLOTS


def test_sequence_of_the_whole_context_is_completed(client: Client) -> None:
    context = client.engine.model.context_tokens
    prompt = client.tokens("word " * context)[: context - 8]
    found = client.complete(prompt, temperature=0, max_tokens=8, ignore_eos=True)
    assert len(found.token_ids) == 8


def test_more_sequences_than_slots_all_end(client: Client) -> None:
    answers = [client.start("Hello", seed=seed, max_tokens=6) for seed in range(3 * SLOTS)]
    assert len([completion_of(answer) for answer in answers]) == 3 * SLOTS


@pytest.mark.slow
def test_sequences_that_outgrow_the_cache_are_what_they_are_alone(client: Client) -> None:
    """The cache holds two of them to the end; the others are taken out and begun again."""
    prompt = client.tokens("one two three four five six seven " * 40)[:250]
    # Without the improbable tokens, between which the rounding of a batch may decide.
    params: dict[str, Any] = {"max_tokens": 280, "ignore_eos": True, "top_p": 0.5}
    answers = [client.start(prompt, **params, seed=seed, logprobs=0) for seed in range(3)]
    together = [completion_of(answer) for answer in answers]
    assert [len(found.token_ids) for found in together] == [280] * 3
    assert [len(found.logprobs or ()) for found in together] == [280] * 3
    assert client.complete(prompt, **params, seed=1, logprobs=0).token_ids == together[1].token_ids


def test_cancelled_sequence_frees_its_blocks(client: Client) -> None:
    wait_until(lambda: held_blocks(client) == 0)
    answer = client.start("Once", max_tokens=900, ignore_eos=True)
    answer.next()
    assert held_blocks(client) > 0
    batch = client.engine._batch
    assert batch is not None
    before = batch._manager.current_batch
    client.engine.cancel(client.last_id)
    assert isinstance(error_of(answer), Cancelled)
    wait_until(lambda: held_blocks(client) == 0)
    assert batch._manager.current_batch - before <= 2, "it went on for some steps"


def test_cancelled_sequence_gives_nothing_more(client: Client) -> None:
    answer = client.start("Once", max_tokens=900, ignore_eos=True)
    answer.next()
    client.engine.cancel(client.last_id)
    answer.last()
    client.complete("Two", max_tokens=8, ignore_eos=True)
    assert isinstance(answer.events[-1], Failed)


def test_what_runs_is_in_flight_until_it_ends(client: Client) -> None:
    wait_until(lambda: client.engine.num_inflight() == 0)
    answer = client.start("Once", max_tokens=900, ignore_eos=True)
    generating = client.last_id
    answer.next()
    beams = client.start_beams("Once", max_tokens=100, beam_width=2, num_beams_returned=1)
    assert client.engine.num_inflight() == 2
    client.engine.cancel(generating)
    beams.last()
    wait_until(lambda: client.engine.num_inflight() == 0)


def test_waiting_sequence_is_cancelled_at_once(client: Client) -> None:
    running = [client.start("Once", max_tokens=200, ignore_eos=True) for _ in range(SLOTS)]
    ids = [f"request-{client._count - back}" for back in range(SLOTS)]
    waiting = client.start("Twice", max_tokens=200)
    client.engine.cancel(client.last_id)
    assert isinstance(error_of(waiting), Cancelled)
    for request_id in ids:
        client.engine.cancel(request_id)
    for answer in running:
        error_of(answer)


def test_stop_string_frees_the_blocks(client: Client) -> None:
    whole = client.complete("Once upon", temperature=0, max_tokens=8).text
    client.complete("Once upon", temperature=0, max_tokens=900, stop=(whole[-4:],))
    wait_until(lambda: held_blocks(client) == 0)


def test_unknown_id_is_ignored(client: Client) -> None:
    client.engine.cancel("nobody")
    assert len(client.complete("Hello", max_tokens=2, ignore_eos=True).token_ids) == 2


def test_id_may_be_used_again(client: Client) -> None:
    answers = []
    for _ in range(5):
        answer = Answer()
        tokens = client.tokens("Hello")
        params = SamplingParams(max_tokens=200, ignore_eos=True)
        client.engine.generate("again", tokens, params, answer)
        client.engine.cancel("again")
        answers.append(answer)
    assert all(isinstance(error_of(answer), Cancelled) for answer in answers)
    assert len(client.complete("Hello", max_tokens=3, ignore_eos=True).token_ids) == 3


def test_end_of_the_batch_is_the_end_of_every_request() -> None:
    with loaded_engine() as engine:
        client = Client(engine)
        running = client.start("Once", max_tokens=5000, ignore_eos=True)
        running.next()

        def break_down(*words: Any, **named: Any) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        engine._network.forward = break_down
        assert isinstance(error_of(running), EngineDead)
        wait_until(lambda: engine.dead_reason is not None)
        assert "illegal memory access" in str(engine.dead_reason)
        assert isinstance(error_of(client.start("Twice")), EngineDead)
        end = client.ask(lambda name, sink: engine.score(name, [1, 2], sink)).last()
        assert isinstance(end, Failed)
        assert isinstance(end.error, EngineDead)


def test_die_ends_requests_and_threads() -> None:
    before = set(threading.enumerate())
    with loaded_engine() as engine:
        client = Client(engine)
        running = client.start("Once", max_tokens=5000, ignore_eos=True)
        searching = client.start_beams("Once", beam_width=4, max_tokens=2000, ignore_eos=True)
        running.next()
        began = time.monotonic()
        engine.die()
        assert time.monotonic() - began < 10
        assert isinstance(error_of(running), EngineDead)
        assert isinstance(error_of(searching), EngineDead)
        assert set(threading.enumerate()) - before == set()
        assert isinstance(error_of(client.start("Twice")), EngineDead)
        engine.die()


def test_die_stops_a_load() -> None:
    settings = Settings(model_name=str(model_folder()))
    engine = TransformersEngine(settings, Slice(slot=0, gpus=(), cpus=(0,)))
    phases: list[str] = []

    def report(phase: str, fraction: float | None = None) -> None:
        phases.append(phase)
        if phase == "loading weights":
            engine.die()

    with pytest.raises(EngineDead, match="while it loaded"):
        engine.load(report)
    assert "warming up" not in phases
