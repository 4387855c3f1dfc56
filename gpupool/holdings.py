"""Which worker of this pool holds which GPUs, and which GPUs are quarantined.

A small anonymous shared mapping, made by the master before its forks; master and workers read
and write it. It only helps to choose: that no GPU is given twice rests on the locks alone.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable

from gpupool import procfs

_HELD = struct.Struct("=qq")  # pid, start_ticks; followed by one byte per GPU
_REASON_BYTES = 160


class Holdings:
    """Lives as long as the master and its workers."""

    def __init__(self, num_slots: int, num_gpus: int) -> None:
        self._num_gpus = num_gpus
        self._row_bytes = _HELD.size + num_gpus
        self._reasons_at = num_slots * self._row_bytes
        self._map = mmap.mmap(-1, max(1, self._reasons_at + num_gpus * _REASON_BYTES))

    def publish(self, slot: int, gpus: Iterable[int]) -> None:
        """This process holds these GPUs (positions in the pool's list) for the slot."""
        start = slot * self._row_bytes
        held = set(gpus)
        self._map[start : start + _HELD.size] = _HELD.pack(0, 0)
        marks = bytes(i in held for i in range(self._num_gpus))
        self._map[start + _HELD.size : start + self._row_bytes] = marks
        pid = os.getpid()
        own = _HELD.pack(pid, procfs.start_ticks(pid))
        self._map[start : start + _HELD.size] = own

    def clear(self, slot: int) -> None:
        """The slot holds nothing any more."""
        start = slot * self._row_bytes
        self._map[start : start + self._row_bytes] = bytes(self._row_bytes)

    def held_by(self, slot: int) -> frozenset[int] | None:
        """The GPUs of the slot's worker; None while it holds none or is dead."""
        start = slot * self._row_bytes
        pid, ticks = _HELD.unpack_from(self._map, start)
        process = procfs.read_process(pid) if pid else None
        if process is None or process.start_ticks != ticks or not process.is_running:
            return None
        marks = self._map[start + _HELD.size : start + self._row_bytes]
        return frozenset(i for i, mark in enumerate(marks) if mark)

    def quarantine(self, gpu: int, reason: str) -> None:
        """No worker gets this GPU until the pool restarts."""
        text = (reason or "quarantined").encode()[: _REASON_BYTES - 1]
        start = self._reasons_at + gpu * _REASON_BYTES
        self._map[start : start + _REASON_BYTES] = text.ljust(_REASON_BYTES, b"\0")

    def quarantine_reason(self, gpu: int) -> str | None:
        """Why the GPU is quarantined, or None."""
        start = self._reasons_at + gpu * _REASON_BYTES
        text = self._map[start : start + _REASON_BYTES].rstrip(b"\0")
        return text.decode(errors="replace") or None
