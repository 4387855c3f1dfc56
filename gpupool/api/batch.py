"""Many sequences of one request through one engine (worker process, a handler thread)."""

from __future__ import annotations

import logging
import queue
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gpupool.api.clock import RequestClock, SequenceClock
from gpupool.engines.base import Chunk, Engine, Event, Failed, Finished, SamplingParams, Scored
from gpupool.errors import EngineError

log = logging.getLogger(__name__)

Outcome = Finished | Scored | Failed


@dataclass(frozen=True, slots=True)
class Job:
    """One call of the engine."""

    kind: Literal["generate", "score", "beam_search"]
    prompt: Sequence[int]
    params: SamplingParams


def run_batch(engine: Engine, jobs: Sequence[Job], clock: RequestClock) -> list[Outcome]:
    """The outcome of every job, in order; blocks until all have one.

    At most as many as the engine's slots are inside the engine at once, so that a huge batch
    does not stand in front of everybody who comes later.
    """
    batch_id = uuid.uuid4().hex
    over: queue.SimpleQueue[tuple[int, Outcome]] = queue.SimpleQueue()
    outcomes: dict[int, Outcome] = {}
    started = 0
    try:
        while len(outcomes) < len(jobs):
            while started < len(jobs) and started - len(outcomes) < engine.model.slots:
                sequence = clock.start_sequence()
                _start(engine, f"{batch_id}-{started}", jobs[started], started, over, sequence)
                started += 1
            index, outcome = over.get()
            outcomes[index] = outcome
    finally:
        for index in range(started):
            if index not in outcomes:
                engine.cancel(f"{batch_id}-{index}")
    return [outcomes[index] for index in range(len(jobs))]


def _start(
    engine: Engine,
    request_id: str,
    job: Job,
    index: int,
    over: queue.SimpleQueue[tuple[int, Outcome]],
    clock: SequenceClock,
) -> None:
    def sink(event: Event) -> None:
        if isinstance(event, Chunk):
            clock.tick(len(event.token_ids))
        else:
            over.put((index, event))

    try:
        if job.kind == "score":
            engine.score(request_id, job.prompt, sink)
        elif job.kind == "beam_search":
            engine.beam_search(request_id, job.prompt, job.params, sink)
        else:
            engine.generate(request_id, job.prompt, job.params, sink)
    except Exception:
        log.exception("the engine refused to start request=%s", request_id)
        over.put((index, Failed(EngineError("the engine could not start this request"))))
