"""A worker's exclusive hold on its slice, alive as long as the locked descriptors (worker).

Must not import torch or an engine: `bind` has to come before those.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gpupool import note, occupancy, procfs, remains
from gpupool.errors import NotGranted
from gpupool.gpus import Gpu, read_gpus
from gpupool.lockdir import Locks
from gpupool.note import Note, Trace
from gpupool.partition import Slice

log = logging.getLogger(__name__)

PORTS_PER_LEASE = 64
POLL_S = 0.25


@dataclass(slots=True)
class HeldNote:
    """One GPU's note, open for writing."""

    fd: int
    note: Note


@dataclass(slots=True)
class Lease:
    """Made by GPUDispatcher.acquire; ends with `release` or with the process and its guardian.

    Methods are for one thread at a time. On a machine without GPUs there is nothing to lock,
    wait for or release, and all methods still work.
    """

    slice: Slice  # with the GPUs really granted
    token: str
    port_base: int
    locks: Locks
    notes: list[HeldNote] = field(default_factory=list)
    before: tuple[Trace, ...] = ()  # dead holders that may have left processes on the GPUs
    on_release: Callable[[], None] = lambda: None
    hides_gpus: bool = False
    """Whether the process is to see none, though the machine may have some."""

    @property
    def fds(self) -> tuple[int, ...]:
        """The locked descriptors, for the guardian to keep."""
        return self.locks.fds

    def bind(self) -> None:
        """Make this process, all its threads and its later children see and use only the slice.

        Call it before torch or any engine is imported: CUDA reads its variables once.
        """
        os.environ.update(self.environment())
        allowed = os.sched_getaffinity(0)
        cores = allowed.intersection(self.slice.cpus)
        if cores:
            _pin_all_threads(cores)

    def environment(self) -> dict[str, str]:
        """The variables that `bind` exports."""
        variables = {
            "GPUPOOL_LEASE": self.token,
            # setproctitle would overwrite the environment that the cookie is looked up in.
            "SPT_NOENV": "1",
            "MASTER_PORT": str(self.port_base),
            "VLLM_PORT": str(self.port_base + PORTS_PER_LEASE // 4),
        }
        if self.slice.gpus:
            variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.uuid for gpu in self.slice.gpus)
        if self.hides_gpus:
            variables["CUDA_VISIBLE_DEVICES"] = ""
        return variables

    def await_free(self, timeout_s: float = 60) -> None:
        """Block until nothing of earlier holders is left on the GPUs.

        Kills the processes of dead holders, then waits for the driver to give their memory
        back. NotGranted says who uses the GPUs when that does not happen in time; the lease
        is then still held.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            left = remains.survivors(self.before)
            remains.kill(left)
            used = [] if left else self._used_gpus()
            if not left and not used:
                self._forget_before()
                return
            if time.monotonic() >= deadline:
                raise NotGranted(self._complain(used, timeout_s))
            time.sleep(0.02 if left else POLL_S)

    def is_intact(self) -> bool:
        """Whether the lock files are still those that others would lock. A cleaner that
        removed one has opened the GPU to everybody: drain, and take a new lease."""
        return self.locks.is_intact()

    def release(self) -> None:
        """Give the GPUs back, at once and for all processes that hold copies of `fds`.

        Only after the engine is gone. Idempotent; in a forked child it frees nothing.
        """
        if self.locks.owner_pid == os.getpid():
            for held in self.notes:
                note.end_note(held.fd, held.note)
            self.on_release()
        for held in self.notes:
            os.close(held.fd)
        self.notes = []
        self.on_release = lambda: None
        self.locks.release()

    def _used_gpus(self) -> list[Gpu]:
        if not self.slice.gpus:
            return []
        now = read_gpus(self.slice.gpus).values()
        return [gpu for gpu in now if gpu.fault or not occupancy.is_free(gpu)]

    def _forget_before(self) -> None:
        if self.before:
            log.info("earlier holder's processes are gone slot=%s", self.slice.slot)
        self.before = ()
        for held in self.notes:
            held.note = note.without_before(held.note)
            note.write_note(held.fd, held.note)

    def _complain(self, used: list[Gpu], timeout_s: float) -> str:
        """Why the wait failed. The notes are told too, so that the next try does not take the
        memory for something that is just being freed."""
        if not used:
            left = ", ".join(procfs.describe(p.pid) for p in remains.survivors(self.before))
            return f"after {timeout_s:.0f} s SIGKILL has not ended {left}; only a reboot may"
        for held in self.notes:
            held.note = note.as_contested(held.note)
        self._forget_before()
        faults = [f"GPU {gpu.index} ({gpu.uuid}): {gpu.fault}" for gpu in used if gpu.fault]
        return "; ".join(faults or [occupancy.explain(gpu) for gpu in used])


def _pin_all_threads(cores: set[int]) -> None:
    """sched_setaffinity means one thread; those that are there already need it each."""
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:
            continue
