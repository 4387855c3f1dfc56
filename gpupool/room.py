"""Where whole requests wait until a model can answer them (worker process, main thread only).

A request that waits here holds a connection and its body, no thread.
"""

from __future__ import annotations

import time
from collections import deque

from gpupool.intake import Connection


class Room:
    """First come, first served; each guest has a deadline of the same length."""

    def __init__(self, max_wait_s: float) -> None:
        self._max_wait_s = max_wait_s
        self._guests: deque[tuple[float, Connection]] = deque()

    def __len__(self) -> int:
        return len(self._guests)

    def add(self, conn: Connection) -> None:
        """Let a request wait."""
        self._guests.append((time.monotonic() + self._max_wait_s, conn))

    def take_expired(self) -> list[Connection]:
        """Those that waited as long as they may."""
        now = time.monotonic()
        expired = []
        while self._guests and self._guests[0][0] <= now:
            expired.append(self._guests.popleft()[1])
        return expired

    def take_all(self) -> list[Connection]:
        """Everybody, in order."""
        guests = [conn for _, conn in self._guests]
        self._guests.clear()
        return guests
