"""A well-behaved engine without a model: answers each token of the prompt in turn, in one batch.

A token is a character. Engine arguments: --load-s, --token-s (time of one step of the batch),
--slots, --context, --kv-cache-tokens (room that it says it has). A prompt that begins with ~ gets a
token only at every tenth step.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from gpupool.capabilities import FEATURES
from gpupool.engines.base import (
    Chunk,
    Completion,
    Event,
    Failed,
    Finished,
    ModelInfo,
    Report,
    SamplingParams,
    Scored,
    Sink,
)
from gpupool.engines.outlet import Outlet
from gpupool.errors import Cancelled, EngineDead
from gpupool.partition import Slice
from gpupool.settings import Settings


@dataclass
class _Sequence:
    prompt: Sequence[int]
    params: SamplingParams
    sink: Sink
    text: str = ""
    num_steps: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)


class ScriptedEngine:
    capabilities: ClassVar[frozenset[str]] = frozenset(FEATURES) - {"beam_search"}
    default_params: ClassVar[dict[str, float]] = {}
    computes_in_children: ClassVar[bool] = False

    def __init__(self, settings: Settings, gpu_slice: Slice) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("--load-s", type=float, default=0.0)
        parser.add_argument("--token-s", type=float, default=0.001)
        parser.add_argument("--slots", type=int, default=4)
        parser.add_argument("--context", type=int, default=1000)
        parser.add_argument("--kv-cache-tokens", type=int)
        self.options = parser.parse_args(settings.engine_args)
        self.model = ModelInfo(
            settings.model_name,
            self.options.context,
            256,
            self.options.slots,
            kv_cache_tokens=self.options.kv_cache_tokens,
        )
        self._waiting: deque[tuple[str, _Sequence]] = deque()
        self._running: dict[str, _Sequence] = {}
        self._changed = threading.Condition()
        self._progress = time.monotonic()
        self._dead: str | None = None

    @staticmethod
    def check(settings: Settings, gpus_per_worker: int) -> None:
        pass

    def load(self, report: Report) -> None:
        report("counting sheep", 0.5)
        time.sleep(self.options.load_s)
        threading.Thread(target=self._steps, name="scripted", daemon=True).start()

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    def generate(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, sink: Sink
    ) -> None:
        with self._changed:
            if self._dead is not None:
                sink(Failed(EngineDead(self._dead)))
                return
            sequence = _Sequence(prompt, params, _with_one_end(request_id, sink))
            self._waiting.append((request_id, sequence))
            self._changed.notify()

    def score(self, request_id: str, prompt: Sequence[int], sink: Sink, top: int = 0) -> None:
        sink(Scored(tuple(-float(token) / 100 for token in prompt[1:])))

    def beam_search(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, sink: Sink
    ) -> None:
        raise AssertionError("not among the capabilities")

    def cancel(self, request_id: str) -> None:
        with self._changed:
            sequences = dict(self._waiting) | self._running
        if request_id in sequences:
            sequences[request_id].cancelled.set()

    def num_inflight(self) -> int:
        return len(self._waiting) + len(self._running)

    def last_progress(self) -> float:
        return self._progress

    @property
    def dead_reason(self) -> str | None:
        return self._dead

    def die(self) -> None:
        with self._changed:
            self._dead = self._dead or "told to die"
            self._changed.notify()
        self._end_all()  # Here too, as the thread may hang in a step.

    def _end_all(self) -> None:
        with self._changed:
            sequences = [*self._running.values(), *dict(self._waiting).values()]
            self._running.clear()
            self._waiting.clear()
        for sequence in sequences:
            sequence.sink(Failed(EngineDead(str(self._dead))))

    def _compute(self) -> None:
        """One step of the batch."""
        time.sleep(self.options.token_s)

    def _steps(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._running or self._dead)
                if self._dead is not None:
                    break
                while self._waiting and len(self._running) < self.options.slots:
                    request_id, sequence = self._waiting.popleft()
                    self._running[request_id] = sequence
            self._compute()
            self._progress = time.monotonic()
            for request_id, sequence in list(self._running.items()):
                if self._step(sequence):
                    self._running.pop(request_id, None)
        self._end_all()

    def _step(self, sequence: _Sequence) -> bool:
        """Add one token; whether the sequence is over."""
        if sequence.cancelled.is_set():
            sequence.sink(Failed(Cancelled("cancelled")))
            return True
        sequence.num_steps += 1
        if sequence.prompt[0] == ord("~") and sequence.num_steps % 10:
            return False
        token = sequence.prompt[len(sequence.text) % len(sequence.prompt)]
        sequence.text += chr(token)
        sequence.sink(Chunk(chr(token), (token,)))
        if len(sequence.text) < sequence.params.max_tokens:
            return False
        tokens = tuple(sequence.text.encode("latin-1"))
        sequence.sink(Finished((Completion(sequence.text, tokens, "length"),)))
        return True


def _with_one_end(request_id: str, sink: Sink) -> Sink:
    outlet = Outlet(request_id, sink)

    def pass_on(event: Event) -> None:
        if isinstance(event, Chunk):
            outlet.send(event)
        else:
            outlet.end(event)

    return pass_on
