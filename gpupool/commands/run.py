"""`gpupool run`: starts the pools of a file (a process of its own, or the pool's)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from gpupool.commands.names import complete_of_file
from gpupool.commands.progress import Progress
from gpupool.commands.spelling import flag
from gpupool.commands.stop import stop_all
from gpupool.errors import ConfigError
from gpupool.pools import dry_run, launch
from gpupool.pools.pool_file import Wanted, read_pool_file, select
from gpupool.pools.record import Record
from gpupool.pools.run_dir import only_one
from gpupool.pools.starting import await_ready, exit_of, refuse_running, start_all
from gpupool.refusal import ERROR, EXIT_REFUSED

EXIT_ENDED = 1
EXIT_INTERRUPTED = 130


def run(
    pools: Annotated[
        list[str] | None,
        typer.Argument(
            help="pools of the file; default: all", metavar="POOL", autocompletion=complete_of_file
        ),
    ] = None,
    file: Annotated[
        Path, flag("file", "settings of one pool, or of several below `models`", "-f")
    ] = Path("pool.yaml"),
    foreground: Annotated[
        bool, flag("foreground", "become the pool, for systemd and containers; one pool only")
    ] = False,
    dry_run_: Annotated[
        bool, flag("dry_run", "check everything, say what would start, start nothing")
    ] = False,
) -> None:
    """Start the pools of a file; returns when all serve.

    They run in the background, in sessions of their own. What runs out of the file already is left
    as it is. Either all others start, or none of them runs and the reason is said. Exit 1: a pool
    ended before it was ready; 2: one was refused; 130: Ctrl-C, and they load on.
    """
    wanted = select(read_pool_file(file, os.environ), pools or [], file)
    if dry_run_:
        typer.echo(dry_run.describe(wanted), nl=False)
    elif foreground:
        _become(wanted)
    else:
        _start(wanted)


def _become(wanted: list[Wanted]) -> None:
    if len(wanted) > 1:
        names = ", ".join(pool.name for pool in wanted)
        raise ConfigError(
            f"--foreground is one pool's, and the file has {len(wanted)}: name one of {names}"
        )
    with only_one():
        refuse_running(wanted)
        launch.become(wanted[0])  # the lock's descriptor ends with this program


def _start(wanted: list[Wanted]) -> None:
    started, running = start_all(wanted)
    for record in running:
        typer.echo(
            f"{record.name}: runs already (pid {record.pid}, {record.url}); "
            f"`gpupool restart {record.name}` reads its settings again"
        )
    progress = Progress()
    try:
        ended = await_ready([*running, *started], progress.show)
    except KeyboardInterrupt:
        typer.echo("\nthe pools load on; see gpupool status, or end them with gpupool stop")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if ended is None:
        return
    code, reason = exit_of(ended)
    _end_others(started, ended)
    typer.echo(f"{ERROR}pool {ended.name!r} ended: {reason}", err=True)
    raise typer.Exit(EXIT_REFUSED if code == EXIT_REFUSED else EXIT_ENDED)


def _end_others(started: list[Record], ended: Record) -> None:
    if ended in started:
        ended.remove()
    if others := [record for record in started if record is not ended]:
        stop_all(others)
