"""Jobs of a request, on this replica or on all of them (replica process).

A batch is coordinated by the replica that its request came to: each item is a call that Serve gives
to a replica with a free slot, as it does with requests. What a dead replica had is run again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import CancelledError

from gpupool.batch import AnyJob, Result, run_here
from gpupool.call import Call
from gpupool.clock import RequestClock
from gpupool.engines.base import Failed
from gpupool.errors import Cancelled, EngineDead, EngineError, Unavailable
from gpupool.ray_pool.piece import Piece, PieceResult
from gpupool.replica import Replica
from gpupool.tries import Tries, is_of_dead_worker

log = logging.getLogger(__name__)

MAX_BATCHES = 64
"""That one replica coordinates at a time; a handler thread is held by each. More run as if there
were one replica."""
ASK_AGAIN_S = 0.2

Ask = Callable[[Piece], Awaitable[PieceResult]]
"""Has a piece run by some replica. EngineDead if that died, Unavailable while none can take it."""


class Spread:
    """Stands where a worker of gunicorn's has its Fanout. `at_once` is how many items of a batch
    may be on their way; below 2 there is nobody to spread over."""

    def __init__(self, replica: Replica, ask: Ask, max_wait_s: float) -> None:
        self._replica = replica
        self._ask = ask
        self._max_wait_s = max_wait_s
        self._seats = threading.BoundedSemaphore(MAX_BATCHES)
        self.loop: asyncio.AbstractEventLoop | None = None
        """Serve's, once it is known."""
        self.at_once = 1

    def run(self, jobs: Sequence[AnyJob], call: Call, clock: RequestClock) -> list[Result]:
        """What became of every job, in order; Cancelled if the client goes away. Raises Moved if
        the engine died under a request that ran here, so that another replica runs it whole."""
        if len(jobs) > 1 and self.at_once > 1 and self._seats.acquire(blocking=False):
            try:
                call.step_aside()
                return self._run_spread(jobs, call, clock)
            finally:
                self._seats.release()
        outcomes = run_here(self._replica, jobs, call, clock)
        if any(map(is_of_dead_worker, outcomes)):
            call.move()
        return [Result(outcome, self._replica.slot) for outcome in outcomes]

    def _run_spread(self, jobs: Sequence[AnyJob], call: Call, clock: RequestClock) -> list[Result]:
        assert self.loop is not None
        batch = _Batch(jobs, self._ask, clock, self._replica.slot, self._max_wait_s)
        work = asyncio.run_coroutine_threadsafe(batch.run(self.at_once), self.loop)
        with call.watching(work.cancel):
            try:
                return work.result()
            except CancelledError:
                raise Cancelled("the client closed the connection") from None


class _Batch:
    """One that is spread (Serve's event loop)."""

    def __init__(
        self,
        jobs: Sequence[AnyJob],
        ask: Ask,
        clock: RequestClock,
        rank: int,
        max_wait_s: float,
    ) -> None:
        self._jobs = jobs
        self._ask = ask
        self._clock = clock
        self._rank = rank
        self._max_wait_s = max_wait_s
        self._pending = deque(range(len(jobs)))
        self._tries = Tries(len(jobs))
        self._results: dict[int, Result] = {}
        self._suspects = asyncio.Lock()
        self._is_first = True

    async def run(self, at_once: int) -> list[Result]:
        """So many at a time."""
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(self._jobs))):
                group.create_task(self._run_some())
        return [self._results[index] for index in range(len(self._jobs))]

    async def _run_some(self) -> None:
        while self._pending:
            index = self._pending.popleft()
            self._results[index] = await self._run_one(index)

    async def _run_one(self, index: int) -> Result:
        while True:
            is_suspect = self._tries.is_suspect(index)
            async with self._suspects if is_suspect else contextlib.nullcontext():
                self._tries.start(index)
                try:
                    found = await self._try(self._jobs[index])
                except Unavailable as error:
                    return Result(Failed(error), self._rank, self._tries[index])
            if not self._tries.may_run_again(index, found.outcome):
                return Result(found.outcome, found.rank, self._tries[index])
            log.warning("a replica died under an item of a batch, which another runs")

    async def _try(self, job: AnyJob) -> PieceResult:
        """On one replica. Unavailable if none could take it for as long as a request may wait."""
        until = time.monotonic() + self._max_wait_s
        while True:
            if self._is_first:
                self._clock.start_sequence()  # it counts the time in the queue
            piece = Piece(job, time.monotonic() - self._clock.began, self._is_first)
            self._is_first = False
            try:
                return await self._ask(piece)
            except EngineDead as error:
                return PieceResult(Failed(error), self._rank)
            except Unavailable:
                if time.monotonic() >= until:
                    raise
                await asyncio.sleep(ASK_AGAIN_S)
            except Exception:
                log.exception("an item of a batch could not be asked for")
                return PieceResult(Failed(EngineError("the item could not be run")), self._rank)
