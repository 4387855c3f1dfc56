"""The clock of a scripted engine's steps: a timer of the kernel's that an event loop can watch (a
worker of the pool, or the process of `paced_server`).

The timers of uvloop are a millisecond coarse, which is more than what is to be measured.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable

ABSOLUTE = 1  # TFD_TIMER_ABSTIME
NS_PER_S = 1_000_000_000


class _Spec(ctypes.Structure):
    """`struct itimerspec`."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("first_s", ctypes.c_long),
        ("first_ns", ctypes.c_long),
    )


class Ticks:
    """Calls `on_tick` on the running event loop with the time at which each tick was due, however
    late the loop is. Between `start` and `stop`; silent before."""

    def __init__(self, period_s: float, on_tick: Callable[[float], None]) -> None:
        self._period_ns = round(period_s * NS_PER_S)
        self._on_tick = on_tick
        self._libc = ctypes.CDLL(None, use_errno=True)
        # The flags of timerfd_create are those of open.
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self._fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, flags)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._due_ns = 0
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def start(self) -> None:
        """The first tick is due in a period."""
        self._due_ns = time.monotonic_ns() + self._period_ns
        self._set(self._period_ns, self._due_ns)

    def stop(self) -> None:
        """Until `start`; also from within `on_tick`."""
        self._due_ns = 0
        self._set(0, 0)

    def _set(self, interval_ns: int, first_ns: int) -> None:
        spec = _Spec(*divmod(interval_ns, NS_PER_S), *divmod(first_ns, NS_PER_S))
        if self._libc.timerfd_settime(self._fd, ABSOLUTE, ctypes.byref(spec), None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")

    def _read(self) -> None:
        try:
            count = int.from_bytes(os.read(self._fd, 8), "little")
        except BlockingIOError:
            return
        for _ in range(count):
            if not self._due_ns:
                return
            due_ns = self._due_ns
            self._due_ns += self._period_ns
            self._on_tick(due_ns / NS_PER_S)
