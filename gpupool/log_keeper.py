"""Keeps the log that `gpupool run` writes below a size (one of the master's attendants).

The log is copied and then cut, as logrotate's copytruncate does, and not renamed: the engines'
processes write to it as well, were given it at their start, and know no signal to open another.
All of them append, so that whatever they write next stands at the new beginning.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

log = logging.getLogger(__name__)

MAX_BYTES = 20 << 20
NUM_KEPT = 4
PERIOD_S = 5.0


class LogKeeper:
    """Looks at the log now and then; without a log of ours it does nothing."""

    def __init__(self, path: Path | None, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._next_look = 0.0

    @classmethod
    def from_environment(cls) -> LogKeeper:
        """Of the file that `gpupool run` gave this process for its output."""
        path = os.environ.pop("GPUPOOL_LOG_FILE", "")
        return cls(Path(path) if path else None)

    def turn(self) -> None:
        """Never raises: a log that cannot be kept small is no reason to end."""
        now = time.monotonic()
        if self._path is None or now < self._next_look:
            return
        self._next_look = now + PERIOD_S
        try:
            if self._path.stat().st_size > self._max_bytes:
                rotate(self._path)
        except OSError as error:
            log.warning("the log cannot be kept small: %s", error)
            self._next_look = now + 100 * PERIOD_S

    def stop(self) -> None:
        """The pool begins to end."""


def rotate(path: Path) -> None:
    """Move what is in the log to PATH.1, what is there to PATH.2, and so on; drop the last."""
    for number in range(NUM_KEPT, 1, -1):
        older = numbered(path, number - 1)
        if older.exists():
            older.replace(numbered(path, number))
    with path.open("r+b") as log_file, numbered(path, 1).open("wb") as copy:
        os.fchmod(copy.fileno(), 0o600)
        # Until nothing is left: only what is written between the last look and the cut is lost.
        while os.sendfile(copy.fileno(), log_file.fileno(), None, 1 << 30):
            pass
        os.ftruncate(log_file.fileno(), 0)


def numbered(path: Path, number: int) -> Path:
    """The name of an older log."""
    return path.with_name(f"{path.name}.{number}")
