"""What the slices of a pool use, in memory shared by all its processes.

A place per row of the scoreboard: the row's worker publishes now and then, anybody reads. What
nobody measured lately, because a worker hangs or is gone, is unknown rather than old.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass

MAX_GPUS = 16


@dataclass(frozen=True, slots=True)
class GpuUse:
    """One GPU at one moment; None is what this GPU or its driver does not tell."""

    used_bytes: int | None = None
    total_bytes: int | None = None
    utilization: float | None = None  # 0 to 1: the share of time in which it computed
    temperature_c: float | None = None
    power_w: float | None = None


@dataclass(frozen=True, slots=True)
class Use:
    """A slice at one moment."""

    memory_bytes: int | None
    gpus: tuple[GpuUse, ...] = ()  # in the order of the lease


UNKNOWN = Use(None)


class _Gpu(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_double) for name in GpuUse.__slots__)


class _Place(ctypes.Structure):
    """Numbers are negative where unknown. A double holds whole bytes up to 8 PiB exactly."""

    _fields_ = (
        ("valid_until", ctypes.c_double),  # of the monotonic clock; 0 while it is written
        ("memory_bytes", ctypes.c_double),
        ("num_gpus", ctypes.c_uint64),
        ("gpus", _Gpu * MAX_GPUS),
    )


class Vitals:
    """The places of one pool; made before the first fork."""

    def __init__(self, num_rows: int) -> None:
        self._memory = mmap.mmap(-1, ctypes.sizeof(_Place) * num_rows)
        self._places = (_Place * num_rows).from_buffer(self._memory)

    def publish(self, index: int, use: Use, valid_s: float) -> None:
        """Tell what a row's slice uses; one thread per row."""
        place = self._places[index]
        place.valid_until = 0.0
        place.memory_bytes = _encoded(use.memory_bytes)
        place.num_gpus = min(len(use.gpus), MAX_GPUS)
        for target, gpu in zip(place.gpus, use.gpus, strict=False):
            for name, value in zip(GpuUse.__slots__, astuple(gpu), strict=True):
                setattr(target, name, _encoded(value))
        place.valid_until = time.monotonic() + valid_s

    def clear(self, index: int) -> None:
        """Forget what a row's last worker told."""
        self._places[index].valid_until = 0.0

    def read(self, index: int) -> Use:
        """What the row's slice uses now, or UNKNOWN."""
        place = self._places[index]
        valid_until = place.valid_until
        found = _Place.from_buffer_copy(place)
        if valid_until < time.monotonic() or place.valid_until != valid_until:
            return UNKNOWN
        gpus = tuple(map(_decode_gpu, found.gpus[: found.num_gpus]))
        return Use(_decoded_bytes(found.memory_bytes), gpus)


def total_bytes(gpus: Sequence[GpuUse]) -> int | None:
    """What is used of several GPUs together; unknown if it is of any."""
    used = [gpu.used_bytes for gpu in gpus if gpu.used_bytes is not None]
    return sum(used) if len(used) == len(gpus) else None


def _decode_gpu(gpu: _Gpu) -> GpuUse:
    return GpuUse(
        used_bytes=_decoded_bytes(gpu.used_bytes),
        total_bytes=_decoded_bytes(gpu.total_bytes),
        utilization=_decoded(gpu.utilization),
        temperature_c=_decoded(gpu.temperature_c),
        power_w=_decoded(gpu.power_w),
    )


def _encoded(value: float | None) -> float:
    return -1.0 if value is None else float(value)


def _decoded(value: float) -> float | None:
    return None if value < 0 else value


def _decoded_bytes(value: float) -> int | None:
    return None if value < 0 else int(value)
