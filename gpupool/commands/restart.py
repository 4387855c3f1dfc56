"""`gpupool restart`: new settings and weights without losing a request (a process of its own)."""

from __future__ import annotations

import typer

from gpupool.commands.names import Pools
from gpupool.commands.progress import Progress
from gpupool.errors import ConfigError
from gpupool.pools.look import refuse_ended
from gpupool.pools.record import select_records
from gpupool.pools.rolling import read_again, roll
from gpupool.refusal import ERROR

EXIT_GIVEN_UP = 1


def restart(pools: Pools = None) -> None:
    """Replace workers one by one, with the file read again.

    No request is lost. Returns when it is over. Exit 1: it was given up, and the pool runs on
    with the settings before; 2: the file is refused, and nothing was touched.
    """
    records = select_records(pools or [])
    if not records:
        raise ConfigError("no pool runs; start one with gpupool run -f pool.yaml")
    for record in records:
        refuse_ended(record)
    wanted = [read_again(record) for record in records]
    given_up = False
    for record, pool in zip(records, wanted, strict=True):
        reason = roll(record, pool, Progress("restarts, ").show)
        if reason is not None:
            given_up = True
            typer.echo(f"{ERROR}{record.name}: the restart was given up: {reason}", err=True)
        else:
            typer.echo(f"{record.name}: restarted, every worker is new")
    if given_up:
        raise typer.Exit(EXIT_GIVEN_UP)
