"""A folder for Unix sockets that only this user and this process's life have (worker process)."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

MAX_SOCKET_PATH = 107  # bytes, sockaddr_un
RANDOM_CHARS = 8  # of mkdtemp


class PrivateFolder:
    """Mode 0700, removed by `remove`, or by the next one made after its process died. The names
    of the sockets in it have at most `longest_name` bytes.

    A lock on the folder says that its owner lives: process ids mean nothing to another container
    that shares the folder's parent.
    """

    def __init__(self, prefix: str, *, longest_name: int) -> None:
        root = _root(MAX_SOCKET_PATH - len(f"/{prefix}/") - RANDOM_CHARS - longest_name)
        for left in root.glob(f"{prefix}*"):
            _remove_if_stale(left)
        # Renamed only once it is locked, so that nobody takes it for a stale one.
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=root))
        self._lock = os.open(new, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.path = new.with_name(new.name.replace(".new-", prefix, 1))
        new.rename(self.path)

    def remove(self) -> None:
        """Remove the folder and all in it; idempotent, one thread at a time."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _root(max_bytes: int) -> Path:
    root = tempfile.gettempdir()
    return Path(root if len(os.fsencode(root)) <= max_bytes else "/tmp")


def _remove_if_stale(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        if os.fstat(fd).st_uid == os.getuid():
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(fd)
