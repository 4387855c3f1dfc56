"""The looks at a worker's engine that `watchdog` judges, and the end of a hung one (worker).

Costs nothing while the engine has no work; else one small file of /proc per process and look.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable

from gpupool import gpus, procfs
from gpupool.engines.base import Engine
from gpupool.procfs import Process
from gpupool.watchdog import SILENT_S, Look, Watchdog

log = logging.getLogger(__name__)

SUSPECT_S = 2.0  # of silence
SEARCH_PERIOD_S = 5.0
LAST_WORDS_S = 0.2  # for the engine to fail its requests, before its processes are killed
END_TIMEOUT_S = 2.0


class EngineWatch:
    """Watches the engine of one worker; main thread only. `gpu_uuids` tells its slice's GPUs."""

    def __init__(self, stall_timeout_s: float, gpu_uuids: Callable[[], list[str]]) -> None:
        self._watchdog = Watchdog(stall_timeout_s)
        self._gpu_uuids = gpu_uuids
        self._family: set[int] | None = None
        self._next_search = 0.0

    def find_trouble(self, engine: Engine) -> str | None:
        """Why the engine must be replaced, or None. Quick; call it every second or more often."""
        num_inflight = engine.num_inflight()
        is_busy = num_inflight > 0
        look = Look(
            at=time.monotonic(),
            num_inflight=num_inflight,
            last_progress=engine.last_progress(),
            processes=self._read_family(engine.computes_in_children) if is_busy else (),
            gpus_compute=is_busy and self._gpus_compute(),
        )
        return self._watchdog.judge(look)

    def _read_family(self, only_children: bool) -> tuple[Process, ...]:
        """The processes that compute for the engine. What else the worker does, such as reading
        requests, must not pass for its engine's work where that can be told apart."""
        worker = os.getpid()
        # A search reads a file of every process of the machine: once, and then only if those
        # that are known are silent, as others may have come that compute.
        is_suspect = self._watchdog.silent_s >= SUSPECT_S
        if self._family is None or (is_suspect and time.monotonic() >= self._next_search):
            self._next_search = time.monotonic() + SEARCH_PERIOD_S
            with contextlib.suppress(OSError):  # without free files those that are known must do
                self._family = {p.pid for p in procfs.list_processes() if p.pgid == worker}
        found = [procfs.read_process(pid) for pid in self._family or ()]
        return tuple(
            process
            for process in found
            # Another process may have the number by now, but not in this group.
            if process is not None and process.pgid == worker
            if process.pid != worker or not only_children
        )

    def _gpus_compute(self) -> bool:
        """A step on a GPU may take long and needs no CPU time meanwhile: vLLM sleeps until it is
        over. Asked only of an engine that is suspect."""
        if self._watchdog.silent_s < SILENT_S / 2:
            return False
        uuids = self._gpu_uuids()
        return bool(uuids) and gpus.are_computing(uuids)


def end_hung_engine(engine: Engine, exit_code: int) -> None:
    """End an engine that does not work any more, and all its processes; returns at once.

    Its requests end first, so that their clients are answered. If the engine cannot even end
    them, the worker exits with `exit_code`, since its threads would wait for ever.
    """
    threading.Thread(target=_end, args=(engine, exit_code), name="undertaker", daemon=True).start()


def _end(engine: Engine, exit_code: int) -> None:
    began = time.monotonic()
    dying = threading.Thread(target=engine.die, name="die", daemon=True)
    dying.start()
    dying.join(LAST_WORDS_S)
    # Without waiting for an orderly end, which a stopped process never comes to.
    for process in procfs.group_members(os.getpid()):
        if process.pid != os.getpid():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, signal.SIGKILL)
    dying.join(max(0.0, END_TIMEOUT_S - (time.monotonic() - began)))
    if dying.is_alive() and engine.num_inflight():
        log.error("the hung engine does not end its %d requests: exit", engine.num_inflight())
        os._exit(exit_code)
