"""A loaded TransformersEngine and its answers, for the tests of this folder."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gpupool.engines.base import (
    Chunk,
    Completion,
    Event,
    Failed,
    Finished,
    SamplingParams,
    Scored,
    Sink,
)
from gpupool.engines.transformers import TransformersEngine
from gpupool.partition import Slice
from gpupool.settings import Settings
from tests.demo_model import model_folder

ANSWER_TIMEOUT_S = 120


@contextmanager
def loaded_engine(*engine_args: str) -> Iterator[TransformersEngine]:
    """The demo model in 32 bits, on all cores this process may use."""
    settings = Settings(model_name=str(model_folder()), engine_args=engine_args)
    cores = tuple(sorted(os.sched_getaffinity(0)))
    engine = TransformersEngine(settings, Slice(slot=0, gpus=(), cpus=cores))
    try:
        engine.load(lambda phase, fraction: None)
        yield engine
    finally:
        engine.die()


class Answer:
    """The events of one request, as a sink."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._arrived: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self._arrived.put(event)

    def next(self) -> Event:
        """The next event, waiting for it."""
        return self._arrived.get(timeout=ANSWER_TIMEOUT_S)

    def last(self) -> Finished | Scored | Failed:
        """The end, waiting for it."""
        while True:
            event = self.next()
            if not isinstance(event, Chunk):
                return event

    @property
    def chunks(self) -> list[Chunk]:
        """What has come before the end."""
        return [event for event in self.events if isinstance(event, Chunk)]


class Client:
    """Asks an engine and waits, or not."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.engine = engine
        self._count = 0

    def start(self, prompt: str | list[int], **params: Any) -> Answer:
        """Begin a generation."""
        return self.ask(
            lambda request_id, sink: self.engine.generate(
                request_id, self.tokens(prompt), SamplingParams(**params), sink
            )
        )

    def ask(self, start: Callable[[str, Sink], None]) -> Answer:
        """Begin anything, with a request id of its own."""
        answer = Answer()
        self._count += 1
        self.last_id = f"request-{self._count}"
        start(self.last_id, answer)
        return answer

    def tokens(self, prompt: str | list[int]) -> list[int]:
        """Of a text, or themselves."""
        return self.engine.tokenize(prompt) if isinstance(prompt, str) else prompt

    def complete(self, prompt: str | list[int], **params: Any) -> Completion:
        """One whole completion."""
        return completion_of(self.start(prompt, **params))

    def start_score(self, prompt: str | list[int]) -> Answer:
        """Begin to score a prompt."""
        tokens = self.tokens(prompt)
        return self.ask(lambda name, sink: self.engine.score(name, tokens, sink))

    def score(self, prompt: str | list[int]) -> tuple[float, ...]:
        """The log-probabilities of a prompt."""
        end = self.start_score(prompt).last()
        assert isinstance(end, Scored), end
        return end.logprobs

    def start_beams(self, prompt: str | list[int], **params: Any) -> Answer:
        """Begin a beam search."""
        tokens, sampling = self.tokens(prompt), SamplingParams(**params)
        return self.ask(lambda name, sink: self.engine.beam_search(name, tokens, sampling, sink))

    def wait_for_progress(self, since: float) -> None:
        """Until the engine has made a step."""
        wait_until(lambda: self.engine.last_progress() > since)

    def beams(self, prompt: str | list[int], **params: Any) -> tuple[Completion, ...]:
        """The completions of a beam search."""
        end = self.start_beams(prompt, **params).last()
        assert isinstance(end, Finished), end
        return end.completions


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline, "the condition was never met"
        time.sleep(0.005)


def completion_of(answer: Answer) -> Completion:
    """The one completion of an answer, waiting for it."""
    end = answer.last()
    assert isinstance(end, Finished), end
    return end.completions[0]
