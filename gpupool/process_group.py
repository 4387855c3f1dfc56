"""Ends what is in a dead worker's process group (guardian and master). Standard library only.

The guardian runs this after its fork, so nothing here imports or starts anything.
"""

from __future__ import annotations

import contextlib
import os
import signal

from gpupool import procfs

TRACKER = b"multiprocessing.resource_tracker"


def kill_all_but_trackers(pgid: int) -> tuple[int, int]:
    """SIGKILL those that one look finds; how many they are, and how many trackers there are.

    An engine has its shared memory in /dev/shm, and a killed one leaves it there for ever, but for
    Python's resource tracker, which removes it as soon as all of its clients are gone, and ends.
    """
    members = procfs.group_members(pgid)
    others = [member for member in members if not _is_tracker(member.pid)]
    for member in others:
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours to kill
            os.kill(member.pid, signal.SIGKILL)
    return len(others), len(members) - len(others)


def _is_tracker(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return TRACKER in file.read()
    except OSError:
        return False
