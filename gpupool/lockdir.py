"""The directory of the GPU locks, and flock on the files in it (master and workers).

One directory for all services and all users of the machine: an exclusive lock in a directory
of one's own excludes nobody. Files are only ever created, never removed: whoever holds a lock
on a removed file excludes nobody either. So the directory must not be one where cleaners remove
old files (as in /tmp), and a held lock can be checked for its file still being there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import lock_descriptor

from gpupool.errors import ConfigError
from gpupool.gpus import Gpu

CANDIDATES = (Path("/run/lock/gpupool"), Path("/dev/shm/gpupool"))
"""Both are in memory, so a reboot clears them, and open to every user on common systems. The
first that exists is taken by all; where /run/lock is root's own, an administrator can make
/run/lock/gpupool (mode 1777) or the second serves."""

REMOTE_FILE_SYSTEMS = ("nfs", "cifs", "smb", "9p", "afs", "ceph", "lustre", "gpfs", "fuse")

REMEDY = "Give another directory with --lock_dir, the same one for every service of this machine"


@dataclass(slots=True)
class Locks:
    """flock on some lock files, alive as long as any process has one of the descriptors.

    They are raw descriptors of our own, not FileLock objects: those close their descriptor in
    every forked child and when they are garbage collected, and the guardian must keep it.
    """

    paths: tuple[Path, ...]
    fds: tuple[int, ...]
    owner_pid: int

    @classmethod
    def joined(cls, parts: Iterable[Locks]) -> Locks:
        """One object for several, which end."""
        locks = cls((), (), os.getpid())
        for part in parts:
            locks.paths += part.paths
            locks.fds += part.fds
            part.paths = part.fds = ()
        return locks

    def is_intact(self) -> bool:
        """Whether the locked files are still the ones that others would lock."""
        return all(map(_is_same_file, self.fds, self.paths))

    def release(self) -> None:
        """Unlock at once, also for processes that have copies of the descriptors.

        A forked child only closes its copies: the lock is its parent's.
        """
        for fd in self.fds:
            if os.getpid() == self.owner_pid:
                fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)
        self.paths = self.fds = ()


class Busy(Exception):
    """A lock is held by another process; `path` is its file."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path


def open_lock_dir(asked: Path | None) -> Path:
    """The directory to use, created if missing; ConfigError says what is wrong with it."""
    path = asked if asked is not None else _default()
    try:
        _create(path)
        found = os.stat(path, follow_symlinks=asked is not None)
    except OSError as error:
        raise ConfigError(f"lock directory {str(path)!r}: {error.strerror}. {REMEDY}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"lock directory {str(path)!r} is no directory. {REMEDY}")
    refuse_remote(path, file_system(found.st_dev))
    return path


def _default() -> Path:
    """The first candidate that exists, else the first that can be made."""
    for path in CANDIDATES:
        if path.is_dir():
            return path
    for path in CANDIDATES:
        try:
            _create(path)
        except OSError:
            continue
        return path
    return CANDIDATES[0]


def _create(path: Path) -> None:
    if path.is_dir():
        return
    path.mkdir(parents=True, exist_ok=True)
    # Like /tmp: everybody may add files, nobody may remove another user's.
    path.chmod(0o1777)


def file_system(device: int) -> str:
    """The type of the file system with this device number, "" where it is unknown."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0]
    return ""


def refuse_remote(path: Path, type_name: str) -> None:
    """A network's flock can be lost while its holder lives, so it is no lease."""
    if type_name.startswith(REMOTE_FILE_SYSTEMS):
        raise ConfigError(
            f"lock directory {str(path)!r} is on {type_name}, where a lock can be lost while its "
            f"holder lives. {REMEDY}, on a local file system"
        )


def prepare(directory: Path, gpus: Iterable[Gpu]) -> None:
    """Create the lock files, so that a directory that cannot be used is known before any fork."""
    for path in lock_modes(directory, gpus):
        try:
            os.close(_open(path))
        except OSError as error:
            raise ConfigError(
                f"lock file {str(path)!r} can be neither opened nor created: {error.strerror}. "
                f"{REMEDY}, or make room in it, or have its owner make it readable for all"
            ) from None


def lock_modes(directory: Path, gpus: Iterable[Gpu]) -> dict[Path, int]:
    """Which files to lock for these GPUs and how, in the order that everybody uses.

    A MIG device is locked exclusively and its GPU shared; a whole GPU exclusively. So MIG
    devices of one GPU do not exclude each other, but each excludes the whole GPU.
    """
    modes: dict[Path, int] = {}
    for gpu in gpus:
        modes[lock_path(directory, gpu.uuid)] = fcntl.LOCK_EX
        if gpu.parent_uuid is not None:
            modes.setdefault(lock_path(directory, gpu.parent_uuid), fcntl.LOCK_SH)
    return dict(sorted(modes.items()))


def lock_path(directory: Path, name: str) -> Path:
    """The lock file of a GPU's UUID; an old form of MIG ids holds slashes."""
    return directory / f"{file_name(name)}.lock"


def file_name(uuid: str) -> str:
    """A UUID as part of a file name."""
    return uuid.replace("/", "_")


def try_lock(modes: Mapping[Path, int]) -> Locks:
    """Lock all the files or none, without waiting. Raises Busy or OSError."""
    fds: list[int] = []
    try:
        for path, mode in modes.items():
            fds.append(_lock_one(path, mode))
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return Locks(tuple(modes), tuple(fds), os.getpid())


@contextmanager
def allocator(directory: Path) -> Iterator[None]:
    """One at a time, so that two that try several locks do not fail because of each other.

    It only spares retries. So it waits for 20 ms at most and then goes on without: a process
    that is stopped here, or wants to be in the way, must not stop the others.
    """
    locks: Locks | None = None
    deadline = time.monotonic() + 0.02
    while locks is None and time.monotonic() < deadline:
        try:
            locks = try_lock({directory / "allocator.lock": fcntl.LOCK_EX})
        except Busy:
            time.sleep(0.0005)
        except OSError:
            break
    try:
        yield
    finally:
        if locks is not None:
            locks.release()


def is_locked(directory: Path, uuid: str) -> bool:
    """Whether anybody holds the GPU. A look is a try too, so it takes its turn."""
    with allocator(directory):
        try:
            os.close(_lock_one(lock_path(directory, uuid), fcntl.LOCK_SH))
        except (Busy, OSError):
            return True
    return False


def holder_pid(path: Path) -> int | None:
    """The process that took the lock, from the kernel's list, if it is visible from here."""
    try:
        found = os.stat(path)
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    wanted = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for line in lines:
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5] == wanted and int(fields[4]) > 0:
            return int(fields[4])
    return None


def _lock_one(path: Path, mode: int) -> int:
    for _ in range(5):
        fd = _open(path)
        try:
            if not _flock(fd, mode):
                raise Busy(path)
            # Between open and flock the file may have been removed: then this lock is on a file
            # that nobody else will ever open.
            if _is_same_file(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    raise OSError(errno.ESTALE, "the lock file is removed again and again", str(path))


def _flock(fd: int, mode: int) -> bool:
    if mode == fcntl.LOCK_EX:
        return lock_descriptor(fd, blocking=False)
    # filelock has no shared mode for descriptors; this is the same kernel lock.
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(path: Path) -> int:
    """Open for reading, which is all that flock needs and all that another user's file allows.

    O_CREAT only together with O_EXCL: in a sticky directory the kernel may refuse a plain
    O_CREAT of another user's existing file (fs.protected_regular). O_NONBLOCK: a fifo put
    there by somebody must not hang the worker.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    for _ in range(5):
        try:
            fd = os.open(path, flags)
        except FileNotFoundError:
            try:
                fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
                os.fchmod(fd, 0o644)  # whatever the umask, others must be able to lock it
            except FileExistsError:
                continue
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    raise OSError(errno.ESTALE, "the lock file is removed again and again", str(path))


def _is_same_file(fd: int, path: Path) -> bool:
    opened = os.fstat(fd)
    try:
        there = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return (opened.st_dev, opened.st_ino) == (there.st_dev, there.st_ino)
