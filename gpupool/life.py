"""What the master knows of one living worker, and what its end means (master)."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from math import inf

from gpupool.reload import Edition
from gpupool.scoreboard import Row
from gpupool.worker import ENGINE_FAILED, PoolWorker

START_TIMEOUT_S = 300.0  # from the fork to the main loop: imports, NVML


@dataclass(slots=True, eq=False)
class Life:
    """One worker, from its fork until it is reaped."""

    worker: PoolWorker
    edition: Edition
    was_ready: bool = False
    is_told: bool = False  # to end, by us or by an operator
    end_by: float = inf  # when it is killed
    verdict: str = ""  # why the master ends it, where that is a failure

    @property
    def pid(self) -> int:
        """The process."""
        return int(self.worker.pid)

    @property
    def slot(self) -> int:
        """Whose slice it has."""
        return self.worker.slot

    @property
    def row(self) -> Row:
        """Its row of the scoreboard."""
        return self.worker.row

    @property
    def is_leaving(self) -> bool:
        """Whether its successor may be forked already: it ends, and not for a failure."""
        return (self.is_told or self.row.state == "draining") and not self.verdict

    def overdue(self, patience_s: float) -> str | None:
        """Why it had enough time for what it is at, or None."""
        row, limit_s = self.row, self.edition.settings.load_timeout_s
        lasts_s = time.monotonic() - row.since
        if row.state == "loading" and limit_s and lasts_s > limit_s:
            return f"its load took longer than --load_timeout_s ({limit_s} s), phase {row.phase!r}"
        if row.state == "starting" and lasts_s > START_TIMEOUT_S:
            return f"it did not get to load anything within {START_TIMEOUT_S:.0f} s"
        # A worker that waits for the end of a back-off was in this state before.
        has_failed = row.state == "failed" and row.since > row.not_before
        if has_failed and lasts_s > patience_s:
            return row.last_error or "it failed"
        return None


@dataclass(frozen=True, slots=True)
class End:
    """How a worker ended; made before its row is cleared."""

    reason: str
    is_failure: bool  # false: it was told to end, and so it did
    ready_since: float  # 0: never was
    is_permanent: bool  # the next try would fail as well
    was_up: bool  # its main loop ran

    @classmethod
    def of(cls, life: Life, status: int) -> End:
        """Judge a worker by its exit status and by what it published last."""
        row = life.row
        was_told = life.is_told or row.state == "draining"
        return cls(
            reason=life.verdict or _reason(life, status),
            is_failure=bool(life.verdict) or not was_told,
            ready_since=row.ready_since,
            is_permanent=bool(row.is_permanent),
            was_up=row.state != "starting",
        )


def _reason(life: Life, status: int) -> str:
    row, hint = life.row, ""
    if row.state == "failed" and row.last_error:
        return row.last_error
    if os.WIFEXITED(status):
        code = os.WEXITSTATUS(status)
        if code == ENGINE_FAILED and row.last_error:
            return row.last_error
        how = f"exited with code {code}"
    else:
        number = os.WTERMSIG(status)
        names = {known.value: known.name for known in signal.Signals}
        how = f"was killed by {names.get(number, f'signal {number}')}"
        hint = "; perhaps there was not enough memory" if number == signal.SIGKILL else ""
    if life.worker.aborted:
        limit_s = life.edition.settings.heartbeat_timeout_s
        how = f"its main loop was silent for more than --heartbeat_timeout_s ({limit_s} s)"
        hint = ""
    phase = f" ({row.phase})" if row.phase else ""
    return f"{how} while {row.state}{phase}{hint}"
