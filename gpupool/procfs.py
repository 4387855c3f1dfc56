"""What /proc says of other processes (any process). Standard library only.

The guardian runs this after its fork, so nothing here imports or starts anything.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Process:
    """One line of /proc/PID/stat; (pid, start_ticks) names a process for the whole boot."""

    pid: int
    name: str
    state: str
    pgid: int
    num_threads: int
    start_ticks: int
    cpu_ticks: int  # of all its threads, in user and kernel, so far
    last_signal: int  # what stopped it, or ended it if nobody has reaped it yet; 0: none, unknown

    @property
    def is_running(self) -> bool:
        """False for the dead that nobody has reaped yet.

        A leader shows Z as soon as its first thread is gone, while the others may still run.
        """
        return self.state not in "ZXx" or self.num_threads > 1


def read_process(pid: int) -> Process | None:
    """The process, or None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            line = file.read()
    except OSError:
        return None
    # The name stands in parentheses and may itself hold spaces and parentheses.
    head, _, tail = line.rpartition(b")")
    fields = tail.split()
    if len(fields) < 20:
        return None
    return Process(
        pid=pid,
        name=head.partition(b"(")[2].decode(errors="replace"),
        state=fields[0].decode(),
        pgid=int(fields[2]),
        num_threads=int(fields[17]),
        start_ticks=int(fields[19]),
        cpu_ticks=int(fields[11]) + int(fields[12]),
        # exit_code of proc_pid_stat(5), a wait status; shown to whoever may trace the process.
        last_signal=int(fields[49]) & 0x7F if len(fields) > 49 else 0,
    )


def list_processes() -> Iterator[Process]:
    """Every process that is visible from here."""
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := read_process(int(name))) is not None:
            yield process


def group_members(pgid: int) -> list[Process]:
    """The processes of a group that still run."""
    return [p for p in list_processes() if p.pgid == pgid and p.is_running]


def ticks_per_second() -> int:
    """The unit of `cpu_ticks` and `start_ticks`."""
    return os.sysconf("SC_CLK_TCK")


def environ_holds(pid: int, entry: str) -> bool:
    """Whether a process was started with `NAME=value` in its environment."""
    return entry.encode() in _environ(pid)


def environ_names(pid: int, name: str) -> bool:
    """Whether a process was started with this variable."""
    return any(entry.startswith(f"{name}=".encode()) for entry in _environ(pid))


def _environ(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def proportional_bytes(pid: int) -> int:
    """Memory of a process, each shared page divided among those that share it; 0 when it is gone.
    The kernel walks all its pages for this."""
    for line in _read_text(f"/proc/{pid}/smaps_rollup").splitlines():
        name, _, size = line.partition(":")
        if name == "Pss":
            return int(size.split()[0]) * 1024
    return 0


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 when it is gone."""
    process = read_process(pid)
    return process.start_ticks if process else 0


def boot_id() -> str:
    """Names this boot of the machine, so that pids of an earlier one are never believed."""
    return _read_text("/proc/sys/kernel/random/boot_id")


def pid_namespace() -> str:
    """Names the pid namespace: a pid seen in another container means another process here."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def user_name(uid: int) -> str:
    """The login name, or the number where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def describe(pid: int) -> str:
    """`pid 4242 (python3, user bob)`, for messages."""
    process = read_process(pid)
    if process is None:
        return f"pid {pid} (not visible from here; another container?)"
    try:
        user = user_name(os.stat(f"/proc/{pid}").st_uid)
    except OSError:
        return f"pid {pid} ({process.name})"
    return f"pid {pid} ({process.name}, user {user})"


def _read_text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""
