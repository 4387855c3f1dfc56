"""Finding and killing what a dead lease holder left behind (worker, before its engine loads).

With a guardian there is nothing to find; this is for the case that it was killed as well.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable

from gpupool import procfs
from gpupool.note import Note, Trace, is_alive, is_of_here
from gpupool.procfs import Process


def dead_traces(notes: Iterable[Note]) -> tuple[Trace, ...]:
    """The holders that these notes tell of and that may have left processes.

    Only notes of our own user and of root count: a note is a list of what to kill. A holder
    that gave its lease back in order is not listed, and a living process never is.
    """
    found: list[Trace] = []
    for note in notes:
        if note.is_trusted and note.ended_s is None:
            found.extend((note.trace, *note.before))
    return tuple(dict.fromkeys(trace for trace in found if _may_be_killed(trace)))


def _may_be_killed(trace: Trace) -> bool:
    own = os.getpgrp()
    return is_of_here(trace) and own not in (trace.pid, trace.pgid) and not is_alive(trace)


def survivors(traces: Iterable[Trace]) -> list[Process]:
    """The processes of those leases that still run."""
    wanted = tuple(traces)
    if not wanted:
        return []
    own = os.getpid()
    return [
        process
        for process in procfs.list_processes()
        if process.is_running
        and process.pid != own
        and any(_belongs(process, trace) for trace in wanted)
    ]


def _belongs(process: Process, trace: Trace) -> bool:
    """By process group, or by the cookie in the environment where it left the group.

    A process group's number is free again once the group is empty; what started before the
    holder cannot be its child, and a leader with another start is another group's.
    """
    if process.start_ticks < trace.start_ticks:
        return False
    if process.pgid == trace.pgid != 0:
        leader = procfs.read_process(trace.pgid)
        return leader is None or leader.start_ticks == trace.start_ticks
    return bool(trace.token) and procfs.environ_holds(process.pid, f"GPUPOOL_LEASE={trace.token}")


def kill(processes: Iterable[Process]) -> None:
    """SIGKILL exactly these processes, never others that got their number meanwhile."""
    for process in processes:
        try:
            fd = os.pidfd_open(process.pid)
        except OSError:
            continue
        try:
            if procfs.start_ticks(process.pid) == process.start_ticks:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        except OSError:
            continue
        finally:
            os.close(fd)
