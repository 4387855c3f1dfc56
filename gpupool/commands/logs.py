"""`gpupool logs`: a pool's log, one worker's part of it, live (a process of its own)."""

from __future__ import annotations

import time
from collections import deque
from typing import Annotated

import typer

from gpupool.commands.names import Pool
from gpupool.commands.spelling import flag
from gpupool.errors import ConfigError
from gpupool.nearest import nearest_hint
from gpupool.pools.log_lines import Everything, Follower, WorkerFilter, read_lines
from gpupool.pools.look import look_at
from gpupool.pools.record import read_records
from gpupool.pools.run_dir import log_of, logged_pools

POLL_S = 0.1


def logs(
    pool: Pool = None,
    follow: Annotated[bool, flag("follow", "go on with what comes, until Ctrl-C", "-f")] = False,
    worker: Annotated[
        int | None, flag("worker", "only this worker's lines, and those that name it", min=0)
    ] = None,
    lines: Annotated[
        int, flag("lines", "how many of the last to print; 0: all", "-n", min=0)
    ] = 100,
) -> None:
    """Print the last lines of a pool's log.

    Also of a pool that has ended; PATH.1 and so on beside the log are its older parts.
    """
    name = _chosen(pool)
    log = log_of(name)
    kept = Everything() if worker is None else WorkerFilter(worker)
    follower = Follower(log)
    before = filter(kept.keeps, read_lines(log, follower.at))
    shown = deque(before, maxlen=lines or None)
    if worker is not None and not shown:
        _refuse_absent(name, worker)
    typer.echo("".join(shown), nl=False)
    try:
        while follow:
            for line in follower.new_lines():
                if kept.keeps(line):
                    typer.echo(line, nl=False)
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        return


def _refuse_absent(name: str, worker: int) -> None:
    """ConfigError for a worker that the log has nothing of, unless it may still come."""
    known = {
        int(found["slot"])
        for view in look_at(record for record in read_records() if record.name == name)
        for found in view.workers
    }
    if worker not in known:
        there = (
            f"it has {', '.join(map(str, sorted(known)))}" if known else "its log has no line of it"
        )
        raise ConfigError(f"--worker {worker}: pool {name!r} has no such worker; {there}")


def _chosen(name: str | None) -> str:
    """The pool named; without a name the only one that runs, or that has a log."""
    known = logged_pools()
    if name is not None:
        if name not in known:
            there = f"there is that of {', '.join(known)}" if known else "there is none"
            raise ConfigError(f"no log of a pool {name!r}{nearest_hint(name, known)}; {there}")
        return name
    running = [record.name for record in read_records() if record.name in known]
    found = running or known
    if len(found) != 1:
        several = f"name one of {', '.join(found)}" if found else "no pool was started here"
        raise ConfigError(f"which pool's log: {several}")
    return found[0]
