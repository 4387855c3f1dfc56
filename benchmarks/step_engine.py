"""Engines without a model, for `--infer_type benchmarks.step_engine:StepEngine` (a worker of the
pool or of the stock server). They sleep where a real one computes.

A prompt asks for the number of tokens that it begins with; no balancer can know it before. The
text of an answer tells by whom and when it was made, so that the load client needs no other
channel: the worker's pid, and the time of the first token by the monotonic clock, which all
processes of a machine share.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from gpupool.engines.base import (
    Chunk,
    Completion,
    Failed,
    Finished,
    ModelInfo,
    Report,
    SamplingParams,
    Sink,
)
from gpupool.engines.outlet import Outlet
from gpupool.errors import Cancelled, EngineDead, EngineError
from gpupool.partition import Slice
from gpupool.settings import Settings

TOKEN = 0
CONTEXT_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Record:
    """What the text of an answer tells."""

    pid: int  # of the worker
    first_at: float  # when the first token was there (monotonic)
    num_tokens: int


@dataclass(eq=False, slots=True)
class _Sequence:
    outlet: Outlet
    length: int
    num_tokens: int = 0
    first_at: float = 0.0
    is_cancelled: bool = False


class StepEngine:
    """One step of a batch of n takes a * (1 + n / b) seconds and gives each sequence a token.

    Steps are due by a clock of their own, so that a machine that is late for one does not make
    the engine slower.
    """

    capabilities: ClassVar[frozenset[str]] = frozenset()
    default_params: ClassVar[Mapping[str, float]] = {}
    computes_in_children: ClassVar[bool] = False

    def __init__(self, settings: Settings, gpu_slice: Slice) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("--step-s", type=float, default=0.01, help="a")
        parser.add_argument("--batch-cost", type=float, default=16.0, help="b")
        parser.add_argument("--slots", type=int, default=8)
        options = parser.parse_args(settings.engine_args)
        self._step_s, self._batch_cost = options.step_s, options.batch_cost
        self.model = ModelInfo(settings.model_name, CONTEXT_TOKENS, 1, options.slots)
        self._changed = threading.Condition()
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._progress = time.monotonic()
        self._dead: str | None = None

    @staticmethod
    def check(settings: Settings, gpus_per_worker: int) -> None:
        """Nothing can be wrong with a model that is none."""

    def load(self, report: Report) -> None:
        threading.Thread(target=self._run, name="steps", daemon=True).start()

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    def generate(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, sink: Sink
    ) -> None:
        length = min(read_length(prompt), params.max_tokens)
        sequence = _Sequence(Outlet(request_id, sink), length)
        with self._changed:
            if self._dead is None:
                self._waiting.append(sequence)
                self._changed.notify()
                return
        sink(Failed(EngineDead(self._dead)))

    def score(self, request_id: str, prompt: Sequence[int], sink: Sink, top: int = 0) -> None:
        sink(Failed(EngineError("this engine has no probabilities")))

    def beam_search(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, sink: Sink
    ) -> None:
        sink(Failed(EngineError("this engine has no beams")))

    def cancel(self, request_id: str) -> None:
        with self._changed:
            for sequence in (*self._waiting, *self._running):
                sequence.is_cancelled |= sequence.outlet.request_id == request_id

    def num_inflight(self) -> int:
        return len(self._waiting) + len(self._running)

    def last_progress(self) -> float:
        return self._progress

    @property
    def dead_reason(self) -> str | None:
        return self._dead

    def die(self) -> None:
        with self._changed:
            self._dead = self._dead or "told to end"
            ended = [*self._running, *self._waiting]
            self._running.clear()
            self._waiting.clear()
            self._changed.notify()
        for sequence in ended:
            sequence.outlet.end(Failed(EngineDead(self._dead)))

    # The batch, on a thread of its own.

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            with self._changed:
                if not self._waiting and not self._running:
                    self._changed.wait_for(lambda: self._waiting or self._dead is not None)
                    due = time.monotonic()
                if self._dead is not None:
                    return
                while self._waiting and len(self._running) < self.model.slots:
                    self._running.append(self._waiting.popleft())
                due += self._step_s * (1 + len(self._running) / self._batch_cost)
            time.sleep(max(0.0, due - time.monotonic()))
            self._progress = time.monotonic()
            self._end_step()

    def _end_step(self) -> None:
        with self._changed:
            batch = list(self._running)
        over = [sequence for sequence in batch if self._give_token(sequence)]
        with self._changed:
            self._running = [sequence for sequence in self._running if sequence not in over]
        for sequence in over:
            sequence.outlet.end(_end_of(sequence))

    def _give_token(self, sequence: _Sequence) -> bool:
        """Whether that was the last one."""
        if sequence.is_cancelled:
            return True
        sequence.first_at = sequence.first_at or self._progress
        sequence.num_tokens += 1
        sequence.outlet.send(Chunk("", (TOKEN,)))
        return sequence.num_tokens >= sequence.length


def _end_of(sequence: _Sequence) -> Finished | Failed:
    if sequence.is_cancelled:
        return Failed(Cancelled("the client is gone"))
    return _finished(sequence.first_at, sequence.num_tokens)


def _finished(first_at: float, num_tokens: int) -> Finished:
    text = write_record(Record(os.getpid(), first_at, num_tokens))
    return Finished((Completion(text, (TOKEN,) * num_tokens, "length"),))


class NoopEngine(StepEngine):
    """Answers at once, on the thread that asks."""

    def load(self, report: Report) -> None:
        """There is no batch to run."""

    def generate(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, sink: Sink
    ) -> None:
        sink(_finished(time.monotonic(), 1))


def read_length(prompt: Sequence[int]) -> int:
    """What a prompt such as "12 tokens" asks for."""
    return int(bytes(prompt).split()[0])


def write_prompt(num_tokens: int) -> str:
    """What `read_length` reads."""
    return f"{num_tokens} tokens"


def write_record(record: Record) -> str:
    """The text of an answer."""
    return f"{record.pid} {record.first_at:.6f} {record.num_tokens}"


def read_record(text: str) -> Record:
    """What `write_record` wrote."""
    pid, first_at, num_tokens = text.split()
    return Record(int(pid), float(first_at), int(num_tokens))
