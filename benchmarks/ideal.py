"""What one queue before all workers would give, without any cost of its own: computed, not
measured (driver, tests). Pure.

A client goes to the worker with the fewest sequences if that has a free slot, else it waits; a slot
that frees goes to who waits longest. As in a real server, a slot is free when the step is over that
gave the last token, and who takes it joins the next step but one: the next one begins at once.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Sequence

from benchmarks.open_loop import SETTLE_S, Arrival, percentiles
from benchmarks.site import StepModel


class CentralQueue:
    """One run; events in the order of time."""

    def __init__(self, num_workers: int, model: StepModel, arrivals: Sequence[Arrival]) -> None:
        self._model = model
        self._arrivals = arrivals
        self._left = [arrival.num_tokens for arrival in arrivals]
        self._first_at: dict[int, float] = {}
        self._room: deque[int] = deque()
        self._joining: list[list[int]] = [[] for _ in range(num_workers)]
        self._batches: list[list[int]] = [[] for _ in range(num_workers)]
        self._is_stepping = [False] * num_workers
        self._order = itertools.count()
        # When, a number that keeps the order of equals, and the worker whose step ends.
        self._steps: list[tuple[float, int, int]] = []

    def run(self) -> list[float]:
        """Seconds to the first token of each client."""
        for index, arrival in enumerate(self._arrivals):
            self._end_steps(arrival.at_s)
            self._room.append(index)
            self._seat(arrival.at_s)
        self._end_steps(float("inf"))
        return [
            self._first_at[index] - arrival.at_s for index, arrival in enumerate(self._arrivals)
        ]

    def _end_steps(self, until: float) -> None:
        while self._steps and self._steps[0][0] <= until:
            now, _, worker = heapq.heappop(self._steps)
            batch = self._batches[worker]
            for index in batch:
                self._first_at.setdefault(index, now)
                self._left[index] -= 1
            self._batches[worker] = [index for index in batch if self._left[index]]
            self._begin_step(worker, now)
            self._seat(now)

    def _begin_step(self, worker: int, now: float) -> None:
        batch = self._batches[worker]
        batch += self._joining[worker]
        self._joining[worker] = []
        self._is_stepping[worker] = bool(batch)
        if batch:
            step_s = self._model.step_s * (1 + len(batch) / self._model.batch_cost)
            heapq.heappush(self._steps, (now + step_s, next(self._order), worker))

    def _seat(self, now: float) -> None:
        """Let those go who waited longest, as long as there are slots."""
        while self._room:
            worker = min(range(len(self._batches)), key=self._load)
            if self._load(worker) >= self._model.slots:
                return
            self._joining[worker].append(self._room.popleft())
            if not self._is_stepping[worker]:
                self._begin_step(worker, now)

    def _load(self, worker: int) -> int:
        return len(self._batches[worker]) + len(self._joining[worker])


def ideal_ttft_ms(
    num_workers: int, model: StepModel, arrivals: Sequence[Arrival]
) -> dict[str, float]:
    """Percentiles over the same clients as a measured run's."""
    times = CentralQueue(num_workers, model, arrivals).run()
    return percentiles(
        [
            seconds
            for seconds, arrival in zip(times, arrivals, strict=True)
            if arrival.at_s >= SETTLE_S
        ]
    )
