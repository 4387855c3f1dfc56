"""How many of the engine's slots are taken (worker process, any thread)."""

from __future__ import annotations

import threading
from collections.abc import Callable

from gpupool.scoreboard import Row


class Slots:
    """Counts sequences in the worker's row, where the siblings see them. One object per worker
    writes what only it may write; its lock is for the worker's own threads."""

    def __init__(self, row: Row) -> None:
        self._row = row
        self._lock = threading.Lock()
        self.on_free: Callable[[], None] = lambda: None
        """Called after slots were given back, on the thread that did."""

    def take(self, count: int = 1) -> None:
        """Count sequences that start here."""
        with self._lock:
            self._row.running += count

    def give_back(self, count: int = 1) -> None:
        """Those sequences are over."""
        if not count:
            return
        with self._lock:
            self._row.running -= count
        self.on_free()

    @property
    def count(self) -> int:
        """Sequences that run here now."""
        return int(self._row.running)
