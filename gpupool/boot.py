"""A worker's way from the fork to a loaded engine: guardian, lease, load (worker process).

`Boot` is made in post_fork, while there is one thread; the rest runs on the boot thread, so that
the heartbeat goes on however long it takes.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable

from dispatcher import GPUDispatcher, Grant, Lease
from gpupool import guardian
from gpupool.errors import ConfigError, GpupoolError, NotGranted
from gpupool.partition import Slice
from gpupool.replica import Replica
from gpupool.scoreboard import Row
from gpupool.settings import Settings

log = logging.getLogger(__name__)

LEASE_RETRY_S = (0.05, 0.2, 1.0)  # a dead predecessor's guardian lets go within moments
PREDECESSOR_POLL_S = 0.05
MEMORY_FREE_TIMEOUT_S = 30.0


class Boot:
    """One boot; lives as long as the worker, since it holds the lease."""

    def __init__(
        self,
        slot: int,
        row: Row,
        predecessor: Row,
        settings: Settings,
        dispatcher: GPUDispatcher,
    ) -> None:
        self._slot = slot
        self._row = row
        self._predecessor = predecessor
        self._settings = settings
        self._dispatcher = dispatcher
        self._lease: Lease | None = None
        self._stopping = threading.Event()
        row.pid = os.getpid()
        self._guardian = guardian.start()
        self._hold(dispatcher.acquire(slot))

    def start(self, replica: Replica, on_failed: Callable[[], None]) -> None:
        """Load on a thread. `on_failed` is called after a failed load: the worker then leaves,
        and the master forks a successor in its time."""
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
        return trouble_of(self._guardian, self._lease)

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
            if not self._await_turn():
                return
            lease = self._await_lease()
            if lease is None:
                return
            self._replica.load(lease.slice, self._settings)
        except BaseException as error:
            told = "worker %d could not load its engine%s"
            # Ours say all in their line, and may say it at every try.
            if isinstance(error, GpupoolError) and error.__cause__ is None:
                log.error(told, self._slot, f": {error}")
            else:
                log.exception(told, self._slot, "")
            self._fail(error)

    def _await_turn(self) -> bool:
        """Wait for the end of the slot's back-off and of the worker before; False if the worker
        is stopped first. A worker is only forked that early so that somebody takes requests."""
        while (left_s := self._row.not_before - time.monotonic()) > 0:
            self._replica.enter("failed", f"next try in {left_s:.0f} s")
            if self._stopping.wait(min(left_s, 1.0)):
                return False
        if self._predecessor.pid:
            self._replica.enter("waiting", f"for the end of process {self._predecessor.pid}")
        while self._predecessor.pid:
            if self._stopping.wait(PREDECESSOR_POLL_S):
                return False
        return True

    def _await_lease(self) -> Lease | None:
        """A lease on GPUs whose memory is free, as soon as there is one; None if the worker is
        stopped first. To wait is no failure and counts no back-off."""
        for count in itertools.count():
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
            if self._stopping.wait(LEASE_RETRY_S[min(count, 2)]):
                break
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

    def _fail(self, error: BaseException) -> None:
        """Publish why, and make room for the next worker."""
        self._row.is_permanent = isinstance(error, ConfigError)
        self._row.describe(last_error=f"{type(error).__name__}: {error}")
        self._replica.fail(error)
        self._on_failed()


def trouble_of(guard: guardian.Guardian, lease: Lease | None) -> str | None:
    """Why a hold on GPUs is not safe any more, or None. Cheap."""
    if not guard.is_alive():
        return "its guardian was killed"
    if lease is not None and not lease.is_intact():
        return "a lock file of its GPUs was removed"
    return None


def freeze_heap() -> None:
    """Let the garbage collector look no more at what was made so far, which stays: in a process
    that has imported vLLM one full look takes half a second, in which no stream gets a token."""
    gc.collect()
    gc.freeze()
