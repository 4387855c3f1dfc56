"""Jobs of a request on the one engine of a replica (replica process, handler threads)."""

from __future__ import annotations

from collections.abc import Sequence

from gpupool.batch import AnyJob, Result, run_here
from gpupool.call import Call
from gpupool.clock import RequestClock
from gpupool.coordinator import is_of_dead_worker
from gpupool.replica import Replica


class Alone:
    """Stands where a worker of gunicorn's has its Fanout."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def run(self, jobs: Sequence[AnyJob], call: Call, clock: RequestClock) -> list[Result]:
        """What became of every job, in order; Cancelled if the client goes away. Raises Moved if
        the engine died, so that another replica runs the whole request."""
        outcomes = run_here(self._replica, jobs, call, clock)
        if any(map(is_of_dead_worker, outcomes)):
            call.move()
        return [Result(outcome, self._replica.slot) for outcome in outcomes]
