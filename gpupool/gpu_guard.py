"""GpuGuard: quarantines the GPUs that the watch finds at fault, and drains who uses them (master).

The watch is a process of its own (gpu_watch); here are only a pipe and the conclusions.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from dispatcher import GPUDispatcher
from gpupool.backoff import DELAYS_S
from gpupool.scoreboard import Scoreboard

log = logging.getLogger(__name__)

SETTLED_S = 60  # a watch that lived this long starts again without delay growing


class GpuGuard:
    """One of the master's attendants. What it writes to the dispatcher all workers see.

    A quarantine ends with the pool, not with a reload: a GPU that failed once is for a person
    to look at. `signal_worker` takes a pid and a signal; a worker that was told to leave has
    `patience_s` to do so.
    """

    def __init__(
        self,
        dispatcher: GPUDispatcher,
        scoreboard: Scoreboard,
        signal_worker: Callable[[int, int], None],
        patience_s: float,
    ) -> None:
        self._dispatcher = dispatcher
        self._scoreboard = scoreboard
        self._signal_worker = signal_worker
        self._patience_s = patience_s
        # A MIG device falls ill with its whole GPU.
        self._index_of = {gpu.parent_uuid or gpu.uuid: gpu.index for gpu in dispatcher.gpus}
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._started_at = self._start_at = 0.0
        self._num_failures = 0
        self._quarantined: set[str] = set()
        self._leaving: dict[int, float] = {}  # pid -> when its patience ends
        self._is_stopped = False

    def turn(self) -> None:
        """Take in what the watch says; never blocks and never raises."""
        if self._is_stopped or not self._index_of:
            return
        if self._process is None and time.monotonic() >= self._start_at:
            self._start()
        self._listen()
        if self._quarantined:
            self._drain_users()

    def stop(self) -> None:
        """End the watch; idempotent."""
        self._is_stopped = True
        if self._process is not None:
            self._process.kill()

    def _start(self) -> None:
        command = [sys.executable, "-m", "gpupool.gpu_watch", str(os.getpid()), *self._index_of]
        self._started_at = time.monotonic()
        try:
            # In a group of its own, so that Ctrl-C reaches the master alone.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, process_group=0
            )
        except OSError as error:
            self._plan_restart(f"could not start: {error}")
            return
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def _listen(self) -> None:
        if self._process is None or self._process.stdout is None:
            return
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._process.stdout.fileno(), 65536):
                self._unread += chunk
                *lines, self._unread = self._unread.split(b"\n")
                for line in lines:
                    self._take(json.loads(line))
            self._process.stdout.close()
            self._process.poll()  # gunicorn reaps every child, perhaps this one already
            self._process, self._unread = None, b""
            self._plan_restart("ended")

    def _plan_restart(self, what: str) -> None:
        if time.monotonic() - self._started_at > SETTLED_S:
            self._num_failures = 0
        delay_s = DELAYS_S[min(self._num_failures, len(DELAYS_S) - 1)]
        self._num_failures += 1
        self._start_at = time.monotonic() + delay_s
        log.error("the GPU watch %s; it starts again in %d s", what, delay_s)

    def _take(self, message: dict[str, str]) -> None:
        """One line of the watch's."""
        if "note" in message:
            log.info("GPU watch: %s", message["note"])
        elif "warning" in message:
            log.warning("GPU watch: %s", message["warning"])
        else:
            self._quarantine(message["uuid"], message["reason"])

    def _quarantine(self, uuid: str, reason: str) -> None:
        if uuid not in self._quarantined:  # a watch that was started again tells it again
            self._quarantined.add(uuid)
            self._dispatcher.quarantine(uuid, reason)
            log.error(
                "GPU %d (%s) is quarantined until the pool restarts: %s",
                self._index_of[uuid],
                uuid,
                reason,
            )

    def _drain_users(self) -> None:
        """SIGTERM to every worker on a quarantined GPU, SIGKILL to one that does not get away:
        its engine may hang in the driver for ever. Looks at all workers each time, as one may
        just have taken its lease when the quarantine came."""
        now = time.monotonic()
        users = {
            row.pid: row.slot for row in self._scoreboard if row.pid and self._is_ill(row.gpus)
        }
        for pid, slot in users.items():
            if pid not in self._leaving:
                log.warning("worker %d drains, its GPU is quarantined pid=%d", slot, pid)
                self._leaving[pid] = now + self._patience_s
                self._signal_worker(pid, signal.SIGTERM)
            elif now >= self._leaving[pid]:
                log.error("worker %d is killed, it did not end in time pid=%d", slot, pid)
                self._leaving[pid] = now + self._patience_s
                self._signal_worker(pid, signal.SIGKILL)
        self._leaving = {pid: end for pid, end in self._leaving.items() if pid in users}

    def _is_ill(self, gpus: list[str]) -> bool:
        return any(self._dispatcher.quarantine_reason(uuid) is not None for uuid in gpus)
