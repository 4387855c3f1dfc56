"""Jobs of a request, on this worker or on the whole pool (worker process, handler threads)."""

from __future__ import annotations

from collections.abc import Sequence

from gpupool.batch import AnyJob, Result, run_here
from gpupool.call import Call
from gpupool.clock import RequestClock
from gpupool.coordinator import Coordinator
from gpupool.mailbox import Mailboxes
from gpupool.replica import Replica
from gpupool.scoreboard import Scoreboard
from gpupool.tries import is_of_dead_worker


class Fanout:
    """Runs jobs for the handler threads of one worker."""

    def __init__(
        self,
        replica: Replica,
        index: int,
        scoreboard: Scoreboard,
        mailboxes: Mailboxes,
        max_wait_s: float,
    ) -> None:
        self.replica = replica
        self.index = index
        self.scoreboard = scoreboard
        self.mailboxes = mailboxes
        self.max_wait_s = max_wait_s

    def run(self, jobs: Sequence[AnyJob], call: Call, clock: RequestClock) -> list[Result]:
        """What became of every job, in order; Cancelled if the client goes away."""
        if len(jobs) != 1 or not call.holds_slot:
            call.step_aside()
            return Coordinator(self, jobs, call, clock).run()
        outcome = run_here(self.replica, jobs, call, clock)[0]
        if is_of_dead_worker(outcome):
            call.move()
        return [Result(outcome, self.replica.slot, call.history.num_moves + 1)]
