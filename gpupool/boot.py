"""A worker's way from the fork to a loaded engine: guardian, lease, load (worker process).

`Boot` is made in post_fork, while there is one thread; the rest runs on the boot thread, so that
the heartbeat goes on however long it takes.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from dispatcher import GPUDispatcher, Grant, Lease
from gpupool import guardian
from gpupool.errors import NotGranted
from gpupool.partition import Slice
from gpupool.replica import Replica
from gpupool.scoreboard import Row
from gpupool.settings import Settings

log = logging.getLogger(__name__)

BACKOFF_S = (1, 5, 30, 120)
LEASE_RETRY_S = 1.0
MEMORY_FREE_TIMEOUT_S = 30.0


class Boot:
    """One boot; lives as long as the worker, since it holds the lease."""

    def __init__(self, slot: int, row: Row, settings: Settings, dispatcher: GPUDispatcher) -> None:
        self._slot = slot
        self._row = row
        self._settings = settings
        self._dispatcher = dispatcher
        self._lease: Lease | None = None
        self._stopping = threading.Event()
        row.pid = os.getpid()
        self._guardian = guardian.start()
        self._hold(dispatcher.acquire(slot))

    def start(self, replica: Replica, on_failed: Callable[[], None]) -> None:
        """Load on a thread. `on_failed` is called after a failed load and its back-off: the
        worker then leaves, and the master forks a successor."""
        self._replica = replica
        self._on_failed = on_failed
        threading.Thread(target=self._run, name="boot", daemon=True).start()

    def stop(self) -> None:
        """Do not wait any more, for GPUs or for a back-off's end."""
        self._stopping.set()

    @property
    def leased(self) -> Slice | None:
        """The slice that the worker holds now."""
        lease = self._lease
        return None if lease is None else lease.slice

    def trouble(self) -> str | None:
        """Why the worker's hold on its GPUs is not safe any more, or None. Cheap."""
        if not self._guardian.is_alive():
            return "its guardian was killed"
        if self._lease is not None and not self._lease.is_intact():
            return "a lock file of its GPUs was removed"
        return None

    def _hold(self, grant: Grant) -> None:
        """Take a granted lease: the guardian keeps it too, and the process is bound to it."""
        if grant.lease is None:
            return
        self._lease = grant.lease
        self._guardian.hold(grant.lease.fds)
        grant.lease.bind()
        self._row.describe(gpus=tuple(gpu.uuid for gpu in grant.lease.slice.gpus))
        if grant.reason:
            log.warning("worker %d runs on other GPUs than planned: %s", self._slot, grant.reason)
            self._row.describe(last_error=grant.reason)

    def _run(self) -> None:
        try:
            lease = self._await_lease()
            if lease is None:
                return
            self._replica.load(lease.slice, self._settings)
            self._row.failures = 0
        except BaseException as error:
            log.exception("worker %d could not load its engine", self._slot)
            self._back_off(error)

    def _await_lease(self) -> Lease | None:
        """A lease on GPUs whose memory is free, as soon as there is one; None if the worker is
        stopped first. To wait is no failure and counts no back-off."""
        while True:
            if self._lease is None:
                grant = self._dispatcher.acquire(self._slot)
                self._hold(grant)
                if self._lease is None:
                    state = "quarantined" if grant.is_quarantined else "waiting"
                    self._report_waiting(grant.reason, state)
            if self._lease is not None:
                try:
                    self._lease.await_free(MEMORY_FREE_TIMEOUT_S)
                    return self._lease
                except NotGranted as error:
                    self._give_back(self._lease)
                    self._report_waiting(str(error))
            if self._stopping.wait(LEASE_RETRY_S):
                return None

    def _give_back(self, lease: Lease) -> None:
        self._lease = None
        lease.release()
        self._guardian.hold(())
        self._row.describe(gpus=())

    def _report_waiting(self, reason: str, state: str = "waiting") -> None:
        if (self._replica.state, self._replica.phase) != (state, reason):
            log.warning("worker %d waits for its GPUs: %s", self._slot, reason)
            self._replica.enter(state, reason)

    def _back_off(self, error: BaseException) -> None:
        """Publish the failure and wait; the slice keeps its count over its workers' lives."""
        self._row.failures += 1
        self._row.describe(last_error=f"{type(error).__name__}: {error}")
        self._replica.fail(error)
        delay_s = BACKOFF_S[min(self._row.failures, len(BACKOFF_S)) - 1]
        log.warning(
            "worker %d failed %d time(s) in a row; next try in %d s",
            self._slot,
            self._row.failures,
            delay_s,
        )
        self._stopping.wait(delay_s)
        self._on_failed()
