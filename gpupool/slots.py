"""How many of the engine's slots are taken (worker process, any thread)."""

from __future__ import annotations

import threading
from collections.abc import Callable

from gpupool.scoreboard import Row, Scoreboard


class Slots:
    """Counts sequences in the worker's row, where the siblings see them. One object per worker
    writes what only it may write; its lock is for the worker's own threads."""

    def __init__(self, scoreboard: Scoreboard, index: int) -> None:
        self._scoreboard = scoreboard
        self._index = index
        self._row: Row = scoreboard[index]
        self._lock = threading.Lock()
        self.on_free: Callable[[], None] = lambda: None
        """Called after slots were given back, on the thread that did."""

    def take(self, count: int = 1, *, handed_over: int = 0) -> None:
        """Count sequences that start here; `handed_over` of what a sibling sent have arrived."""
        with self._lock:
            self._row.running += count
            self._row.received += handed_over

    def give_back(self, count: int = 1) -> None:
        """Those sequences are over."""
        if not count:
            return
        with self._lock:
            self._row.running -= count
        self.on_free()

    def note_arrival(self, count: int = 1) -> None:
        """What a sibling handed over is here, and is counted where it is now."""
        self.take(0, handed_over=count)

    def note_handed_over(self, to: int, count: int = 1) -> None:
        """So much is on its way to a sibling; negative: it was not taken."""
        with self._lock:
            self._scoreboard.note_handed_over(self._index, to, count)
