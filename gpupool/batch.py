"""Jobs and their outcomes, and how one engine runs them (worker process, handler threads)."""

from __future__ import annotations

import logging
import queue
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gpupool.call import Call
from gpupool.clock import RequestClock
from gpupool.engines.base import Chunk, Event, Failed, LastEvent, SamplingParams
from gpupool.errors import Cancelled, EngineDead, EngineError

if TYPE_CHECKING:
    from gpupool.replica import Replica

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answered:
    """What the OpenAI API answered, in one piece."""

    status: int
    content: bytes


Outcome = LastEvent | Answered


@dataclass(frozen=True, slots=True)
class Job:
    """One call of an engine."""

    kind: Literal["generate", "score", "beam_search"]
    prompt: Sequence[int]
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class OpenAIJob:
    """One call of the OpenAI API, with a body that was checked."""

    path: str
    body: dict[str, Any]


AnyJob = Job | OpenAIJob


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a job, which worker's slot it ran on last, and on how many it was tried."""

    outcome: Outcome
    replica: int
    tries: int = 1


class Batch:
    """Jobs inside one engine. `on_over(index, outcome)` is called once for each, on any thread."""

    def __init__(
        self,
        replica: Replica,
        clock: RequestClock,
        on_over: Callable[[int, Outcome], None],
    ) -> None:
        self._engine = replica.ready_engine()
        self._front = replica.front
        self._asked: dict[int, Future[Answered | Failed]] = {}
        self._clock = clock
        self._on_over = on_over
        self._id = uuid.uuid4().hex

    def start(self, index: int, job: AnyJob) -> None:
        """Hand one job to the engine."""
        if isinstance(job, OpenAIJob):
            self._ask(index, job)
        else:
            self._start(index, job)

    def _ask(self, index: int, job: OpenAIJob) -> None:
        self._clock.start_sequence()
        assert self._front is not None
        try:
            self._asked[index] = self._front.ask(job, lambda over: self._on_over(index, over))
        except EngineDead as error:
            self._on_over(index, Failed(error))

    def _start(self, index: int, job: Job) -> None:
        request_id = self._request_id(index)
        clock = self._clock.start_sequence()

        def sink(event: Event) -> None:
            if isinstance(event, Chunk):
                clock.tick(len(event.token_ids))
            else:
                self._on_over(index, event)

        try:
            if job.kind == "score":
                self._engine.score(request_id, job.prompt, sink)
            elif job.kind == "beam_search":
                self._engine.beam_search(request_id, job.prompt, job.params, sink)
            else:
                self._engine.generate(request_id, job.prompt, job.params, sink)
        except Exception:
            log.exception("the engine refused to start request=%s", request_id)
            self._on_over(index, Failed(EngineError("the engine could not start this request")))

    def cancel(self, index: int) -> None:
        """Nobody wants this job's outcome any more; it still gets one."""
        asked = self._asked.pop(index, None)
        if asked is not None:
            asked.cancel()
        else:
            self._engine.cancel(self._request_id(index))

    def _request_id(self, index: int) -> str:
        return f"{self._id}-{index}"


def run_here(
    replica: Replica, jobs: Sequence[AnyJob], call: Call, clock: RequestClock
) -> list[Outcome]:
    """The outcome of every job, in order; Cancelled as soon as the client is gone.

    At most as many as the engine's slots are inside the engine at once, so that a huge batch
    does not stand in front of everybody who comes later.
    """
    over: queue.SimpleQueue[tuple[int, Outcome | None]] = queue.SimpleQueue()
    batch = Batch(replica, clock, lambda index, outcome: over.put((index, outcome)))
    slots = replica.ready_engine().model.slots
    outcomes: dict[int, Outcome] = {}
    started = 0
    try:
        with call.watching(lambda: over.put((-1, None))):
            while len(outcomes) < len(jobs):
                while started < len(jobs) and started - len(outcomes) < slots:
                    batch.start(started, jobs[started])
                    started += 1
                index, outcome = over.get()
                if outcome is None:
                    raise Cancelled("the client closed the connection")
                outcomes[index] = outcome
    finally:
        for index in range(started):
            if index not in outcomes:
                batch.cancel(index)
    return [outcomes[index] for index in range(len(jobs))]
