"""The run directory: what `gpupool run` knows of the pools that it started (any command).

    RUN_DIR/lock              held by a command that starts or ends pools, for moments
    RUN_DIR/NAME/pool.json    the pool's record, as long as it runs
    RUN_DIR/NAME/settings.yaml  what its master reads, at its start and at each reload
    RUN_DIR/NAME/pool.log     its log, and older ones beside it

It is not below $XDG_RUNTIME_DIR, which systemd removes when its user logs out though the pools
run on, nor in /tmp, where cleaners age files: a pool that nobody can find cannot be stopped.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from gpupool.errors import ConfigError
from gpupool.settings import asked_run_dir

LOCK_TIMEOUT_S = 30.0


def open_run_dir() -> Path:
    """The directory, made if it is missing; nobody else may look into it."""
    path = Path(asked_run_dir() or _default()).absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise ConfigError(
            f"run directory {str(path)!r}: {error.strerror}; give another with GPUPOOL_RUN_DIR"
        ) from None
    is_private = found.st_uid == os.geteuid() and not found.st_mode & 0o077
    if not stat.S_ISDIR(found.st_mode) or not is_private:
        raise ConfigError(
            f"run directory {str(path)!r} is not a folder for this user alone (0700), but keys "
            "are kept there; give another with GPUPOOL_RUN_DIR, or `chmod 700` it"
        )
    return path


def _default() -> str:
    """One per machine: homes are shared between machines, pids are not."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(state, "gpupool", socket.gethostname() or "localhost")


def folder_of(name: str) -> Path:
    """A pool's folder, made if it is missing."""
    folder = open_run_dir() / name
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def log_of(name: str) -> Path:
    """A pool's log."""
    return open_run_dir() / name / "pool.log"


def logged_pools() -> list[str]:
    """The pools that have a log, whether they run or not."""
    return sorted(path.parent.name for path in open_run_dir().glob("*/pool.log"))


@contextmanager
def only_one() -> Iterator[None]:
    """One command at a time; for moments, never while something loads or drains."""
    path = open_run_dir() / "lock"
    lock = FileLock(path, timeout=LOCK_TIMEOUT_S, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"another gpupool command has held {str(path)!r} for {LOCK_TIMEOUT_S:.0f} s; wait for "
            "it, or end it"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise ConfigError(
            f"{str(path)!r} cannot be locked: {error}; give a local folder with GPUPOOL_RUN_DIR"
        ) from None
    try:
        yield
    finally:
        lock.release()


def write_private(path: Path, text: str) -> None:
    """Put a file in place in one piece, for this user alone."""
    new = path.with_suffix(".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
    os.replace(new, path)
