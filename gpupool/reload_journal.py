"""How the pool's reloads went, in memory shared by its processes.

Written by the master, told by any worker: so whoever asked for a reload can wait for its end.
"""

from __future__ import annotations

import ctypes
import mmap

REASON_BYTES = 512


class _Journal(ctypes.Structure):
    _fields_ = (
        ("asked", ctypes.c_uint64),
        ("ended", ctypes.c_uint64),  # the last one that did: its number, and all before it
        ("is_given_up", ctypes.c_uint64),
        ("reason", ctypes.c_char * REASON_BYTES),
    )


class ReloadJournal:
    """Of one pool; made before the first fork. Reloads have numbers, from 1."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, ctypes.sizeof(_Journal))
        self._journal = _Journal.from_buffer(self._memory)

    @property
    def asked(self) -> int:
        """How often one was asked for; also the number of the next to begin."""
        return int(self._journal.asked)

    def ask(self) -> None:
        """One is asked for."""
        self._journal.asked += 1

    def end(self, number: int, reason: str | None) -> None:
        """That one, and all that were asked for before it, is over: well, or given up because
        of this."""
        text = (reason or "").encode()[: REASON_BYTES - 1]
        self._journal.reason = text.decode("utf-8", "ignore").encode()
        self._journal.is_given_up = int(reason is not None)
        self._journal.ended = number  # last, so that who sees it sees the rest

    def describe(self) -> dict[str, int | str | None]:
        """For /pool."""
        journal = self._journal
        ended = int(journal.ended)
        reason = bytes(journal.reason).decode("utf-8", "replace")
        return {
            "asked": int(journal.asked),
            "ended": ended,
            "given_up": reason if journal.is_given_up else None,
        }
