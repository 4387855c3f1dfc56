"""The note beside a GPU's lock: who holds it, and how to find what a dead holder left.

Best effort throughout: a note may be missing, torn or stale, and a lease never depends on one.
Written by workers, read by any process.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from gpupool import procfs

MAX_BYTES = 16_384
MAX_TRACES = 8
DRIVER_SLACK_S = 30.0


@dataclass(frozen=True, slots=True)
class Trace:
    """What finds the processes of one lease again, also after its holder died."""

    pid: int
    pgid: int  # 0 unless the holder leads a process group of its own
    start_ticks: int
    boot_id: str
    pid_namespace: str
    token: str  # its children carry GPUPOOL_LEASE=<token>


@dataclass(frozen=True, slots=True)
class Note:
    """One holder's note."""

    trace: Trace
    user: str
    model: str
    pool: str  # names the master
    slot: int
    since: str  # for people
    since_s: float  # seconds since boot, for comparison; wall clocks jump
    ended_s: float | None = None  # set when the lease was given back in order
    is_contested: bool = False  # somebody outside used the GPU all along
    before: tuple[Trace, ...] = field(default=())  # earlier holders not yet known to be gone
    is_trusted: bool = True  # written by us or root; others' notes only inform

    @property
    def is_held(self) -> bool:
        """Whether the holder is still there."""
        return self.ended_s is None and is_alive(self.trace)

    @property
    def may_be_freeing(self) -> bool:
        """Whether memory in use may be that lease's own, which the driver gives back in a
        moment: it ended without a word, or a moment ago."""
        if self.is_contested:
            return False
        return self.ended_s is None or now_s() - self.ended_s < DRIVER_SLACK_S

    def render(self) -> str:
        """For messages: pid, user, model and time of the holder."""
        model = f", model {self.model}" if self.model else ""
        return f"pid {self.trace.pid} (user {self.user}{model}, since {self.since})"


def new_trace(token: str) -> Trace:
    """This process, as its successor will look for it."""
    pid = os.getpid()
    return Trace(
        pid=pid,
        pgid=pid if os.getpgrp() == pid else 0,
        start_ticks=procfs.start_ticks(pid),
        boot_id=procfs.boot_id(),
        pid_namespace=procfs.pid_namespace(),
        token=token,
    )


def new_note(trace: Trace, model: str, pool: str, slot: int, before: tuple[Trace, ...]) -> Note:
    """A note that says this process holds the GPU from now on."""
    return Note(
        trace=trace,
        user=procfs.user_name(os.geteuid()),
        model=model,
        pool=pool,
        slot=slot,
        since=datetime.now().astimezone().isoformat(timespec="seconds"),
        since_s=now_s(),
        before=before[:MAX_TRACES],
    )


def now_s() -> float:
    """Seconds since boot, sleep included; the same clock in every process."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def is_alive(trace: Trace) -> bool:
    """Whether that very process still runs, as far as it can be seen from here."""
    if not is_of_here(trace):
        return trace.boot_id == procfs.boot_id()
    process = procfs.read_process(trace.pid)
    return process is not None and process.start_ticks == trace.start_ticks and process.is_running


def is_of_here(trace: Trace) -> bool:
    """Whether its pids mean anything in this boot and in this container."""
    return trace.boot_id == procfs.boot_id() and trace.pid_namespace == procfs.pid_namespace()


def open_note(directory: Path, gpu_uuid: str) -> int | None:
    """A descriptor to write this user's note through, or None where that cannot be.

    One file per user: in a sticky directory nobody can replace another user's file. It is
    opened at once and kept, since a worker may give up root before its lease ends.
    """
    path = directory / f"{gpu_uuid.replace('/', '_')}.{os.geteuid()}.note"
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        try:
            fd = os.open(path, flags)
        except FileNotFoundError:
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
            os.fchmod(fd, 0o644)
    except OSError:
        return None
    if os.fstat(fd).st_uid == os.geteuid():
        return fd
    os.close(fd)
    return None


def write_note(fd: int, note: Note | None) -> None:
    """Replace the note; None leaves an empty one."""
    text = b""
    if note is not None:
        fields = asdict(note)
        del fields["is_trusted"]
        text = json.dumps(fields).encode() + b"\n"
    try:
        # On a full disk the old blocks can still be overwritten; truncated first, they are gone.
        os.pwrite(fd, text, 0)
        os.ftruncate(fd, len(text))
    except OSError:
        return


def end_note(fd: int, note: Note) -> None:
    """Say that the lease was given back in order."""
    write_note(fd, replace(note, ended_s=now_s(), before=()))


def without_before(note: Note) -> Note:
    """The note once the earlier holders' processes are known to be gone."""
    return replace(note, before=())


def as_contested(note: Note) -> Note:
    """The note of a holder whose GPU somebody else uses."""
    return replace(note, is_contested=True)


def read_notes(directory: Path, gpu_uuid: str) -> list[Note]:
    """All users' notes on a GPU, the latest first; those of an earlier boot are left out."""
    name = gpu_uuid.replace("/", "_")
    notes = []
    try:
        paths = [p for p in directory.iterdir() if _is_note_of(p.name, name)]
    except OSError:
        return []
    for path in paths:
        note = _read(path)
        if note is not None and note.trace.boot_id == procfs.boot_id():
            notes.append(note)
    return sorted(notes, key=lambda note: note.since_s, reverse=True)


def _is_note_of(file_name: str, gpu_name: str) -> bool:
    middle = file_name.removeprefix(f"{gpu_name}.").removesuffix(".note")
    return middle.isdigit() and file_name == f"{gpu_name}.{middle}.note"


def _read(path: Path) -> Note | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        owner = os.fstat(fd).st_uid
        fields = json.loads(os.read(fd, MAX_BYTES))
        return _parse(fields, is_trusted=owner in (0, os.geteuid()))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    finally:
        os.close(fd)


def _parse(fields: dict[str, Any], *, is_trusted: bool) -> Note:
    ended_s = fields["ended_s"]
    return Note(
        trace=_parse_trace(fields["trace"]),
        user=str(fields["user"]),
        model=str(fields["model"]),
        pool=str(fields["pool"]),
        slot=int(fields["slot"]),
        since=str(fields["since"]),
        since_s=float(fields["since_s"]),
        ended_s=None if ended_s is None else float(ended_s),
        is_contested=bool(fields["is_contested"]),
        before=tuple(_parse_trace(trace) for trace in fields["before"][:MAX_TRACES]),
        is_trusted=is_trusted,
    )


def _parse_trace(fields: dict[str, Any]) -> Trace:
    return Trace(
        pid=int(fields["pid"]),
        pgid=int(fields["pgid"]),
        start_ticks=int(fields["start_ticks"]),
        boot_id=str(fields["boot_id"]),
        pid_namespace=str(fields["pid_namespace"]),
        token=str(fields["token"]),
    )
