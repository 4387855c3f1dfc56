"""Where whole requests wait until a worker has a free slot (worker process, main thread only).

Each worker keeps those that came to it; the scoreboard shows how many and since when, so that all
rooms together are one queue. A request that waits holds a connection and its body, no thread.
"""

from __future__ import annotations

import heapq
import itertools
import time

from gpupool.connection import Connection


class Room:
    """In the order in which requests came to the pool; all may wait equally long."""

    def __init__(self, max_wait_s: float) -> None:
        self._max_wait_s = max_wait_s
        self._order: list[tuple[float, int, Connection]] = []
        self._waiting: set[Connection] = set()
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def oldest(self) -> float:
        """Since when the first waits (monotonic); now if nobody does."""
        self._skip_removed()
        return self._order[0][0] if self._order else time.monotonic()

    def add(self, conn: Connection) -> None:
        """Let a request wait; its history says since when it already does."""
        heapq.heappush(self._order, (conn.history.since, next(self._numbers), conn))
        self._waiting.add(conn)

    def remove(self, conn: Connection) -> None:
        """It waits no more."""
        self._waiting.discard(conn)
        # Those who left behind somebody who waits long would stay here, each with its body.
        if len(self._order) > 2 * len(self._waiting):
            self._order = [place for place in self._order if place[2] in self._waiting]
            heapq.heapify(self._order)

    def first(self) -> Connection | None:
        """Who waits longest; stays."""
        self._skip_removed()
        return self._order[0][2] if self._order else None

    def take_expired(self) -> list[Connection]:
        """Those that waited as long as they may."""
        deadline = time.monotonic() - self._max_wait_s
        expired = []
        while (conn := self.first()) is not None and conn.history.since <= deadline:
            self.remove(conn)
            expired.append(conn)
        return expired

    def _skip_removed(self) -> None:
        while self._order and self._order[0][2] not in self._waiting:
            heapq.heappop(self._order)
