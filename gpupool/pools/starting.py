"""Starts the pools of a file, all or none, and waits until they serve (`run`)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from gpupool.errors import ConfigError
from gpupool.pools import launch
from gpupool.pools.look import View, end_of, look_at
from gpupool.pools.pool_file import Wanted
from gpupool.pools.record import Record, read_records
from gpupool.pools.run_dir import only_one

POLL_S = 0.2

Show = Callable[[list[View]], None]


def refuse_running(wanted: list[Wanted], *, of_this_file: bool = True) -> list[Record]:
    """ConfigError if one of these runs already; the caller holds the lock. Those that run out of
    the same file may be left to run: then they are returned."""
    running = {record.name: record for record in read_records() if record.is_running}
    left = []
    for pool in wanted:
        if (other := running.get(pool.name)) is not None:
            if not of_this_file and other.file == str(pool.file.absolute()):
                left.append(other)
                continue
            raise ConfigError(
                f"pool {pool.name!r} runs already (pid {other.pid}, {other.url}, since "
                f"{other.since}, {other.file}); `gpupool restart {pool.name}` reads its file "
                "again, another pool needs another name"
            )
    return left


def start_all(wanted: list[Wanted]) -> tuple[list[Record], list[Record]]:
    """Start in the background those that do not run yet; they, and those that do. Returns at
    once."""
    with only_one():
        running = refuse_running(wanted, of_this_file=False)
        names = {record.name for record in running}
        return [launch.start(pool) for pool in wanted if pool.name not in names], running


def await_ready(records: list[Record], show: Show) -> Record | None:
    """Until all serve; the first that ended instead, or None."""
    while True:
        views = look_at(records)
        show(views)
        for view in views:
            if view.state == "ended":
                return view.record
        if all(view.is_ready for view in views):
            return None
        time.sleep(POLL_S)


def exit_of(record: Record) -> tuple[int, str]:
    """Exit code and reason of a pool that ended; the code is known of one that this process
    started."""
    try:
        _, status = os.waitpid(record.pid, 0)
        code = os.waitstatus_to_exitcode(status)
    except ChildProcessError:
        code = 1
    return code, end_of(record) or f"its master ended with {code}"
