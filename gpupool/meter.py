"""Measures every few seconds what the worker's slice uses (worker process, a thread of its own).

With GPUs NVML says it; on a CPU slice /proc does, for the worker's process group. A driver that
hangs holds this thread and nothing else: its last values soon count as unknown.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

from gpupool import procfs
from gpupool.gpus import Gpu
from gpupool.partition import Slice
from gpupool.vitals import UNKNOWN, GpuUse, Use, Vitals, total_bytes

log = logging.getLogger(__name__)

PERIOD_S = 5.0
NO_LEASE_PERIOD_S = 0.5
MAX_SHARE = 0.01  # of the time; reading a CPU slice takes some 25 ms for each GiB


class Meter:
    """One worker's measurements; lives as long as the worker. `slice_of` gives the leased slice,
    or None while there is none."""

    def __init__(self, vitals: Vitals, index: int, slice_of: Callable[[], Slice | None]) -> None:
        self._vitals = vitals
        self._index = index
        self._slice_of = slice_of
        self._trouble = ""

    def start(self) -> None:
        """Measure from now on, for as long as the process lives."""
        threading.Thread(target=self._run, name="meter", daemon=True).start()

    def _run(self) -> None:
        while True:
            began = time.monotonic()
            gpu_slice = self._slice_of()
            use = self._measure(gpu_slice)
            pause_s = max(PERIOD_S, (time.monotonic() - began) / MAX_SHARE)
            if gpu_slice is None:
                pause_s = NO_LEASE_PERIOD_S
            self._vitals.publish(self._index, use, valid_s=3 * pause_s)
            time.sleep(pause_s)

    def _measure(self, gpu_slice: Slice | None) -> Use:
        try:
            use, trouble = measure(gpu_slice), ""
        except Exception as error:
            use, trouble = UNKNOWN, str(error) or type(error).__name__
        if trouble and trouble != self._trouble:
            log.warning("what the slice uses is not known: %s", trouble)
        self._trouble = trouble
        return use


class IdleMeter:
    """The same for GPUs that no worker holds, whoever uses them; each worker has its own. `idle`
    gives those of now. A thread of its own: one that failed may never answer."""

    def __init__(self, idle: Callable[[], Sequence[Gpu]]) -> None:
        self._idle = idle
        self._found: dict[str, GpuUse] = {}
        self._valid_until = 0.0

    def start(self) -> None:
        """Measure from now on, for as long as the process lives."""
        threading.Thread(target=self._run, name="idle-meter", daemon=True).start()

    def read(self, uuid: str) -> GpuUse | None:
        """What was last measured, if that was lately."""
        return self._found.get(uuid) if time.monotonic() < self._valid_until else None

    def _run(self) -> None:
        while True:
            gpus = tuple(self._idle())
            try:
                uses = measure(Slice(0, gpus, ())).gpus if gpus else ()
            except Exception:  # the driver does not answer: the worker's own measurement says so
                uses = ()
            self._found = {gpu.uuid: use for gpu, use in zip(gpus, uses, strict=False)}
            self._valid_until = time.monotonic() + 3 * PERIOD_S
            time.sleep(PERIOD_S)


def measure(gpu_slice: Slice | None) -> Use:
    """The use of a slice that this process has leased."""
    if gpu_slice is None:
        return UNKNOWN
    if not gpu_slice.gpus:
        return Use(group_bytes(os.getpgrp()))
    from gpupool import nvml

    with nvml.session() as opened:
        if not opened:
            return UNKNOWN
        gpus = tuple(nvml.read_use(gpu) for gpu in gpu_slice.gpus)
    return Use(total_bytes(gpus), gpus)


def group_bytes(pgid: int) -> int | None:
    """Memory of a process group: the sum of the proportional set sizes, in which a page that
    several processes share counts once; None where none can be read."""
    sizes = (procfs.proportional_bytes(process.pid) for process in procfs.group_members(pgid))
    return sum(sizes) or None
