"""`gpupool stop`: drains and ends what `gpupool run` started (a process of its own)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import typer

from gpupool.commands.names import Pools
from gpupool.commands.spelling import flag
from gpupool.pools.record import Record, select_records
from gpupool.pools.stopping import stop as stop_one


def stop(
    pools: Pools = None,
    timeout_s: Annotated[
        float | None,
        flag("timeout_s", "then it is killed; default: graceful_timeout_s and 30 s", min=0),
    ] = None,
) -> None:
    """End all pools, or those named, once they have answered.

    Only what `gpupool run` started is touched. Requests in flight are answered within the pool's
    graceful_timeout_s. Exit 1: something of a pool is still there.
    """
    records = select_records(pools or [])
    if not records:
        typer.echo("no pool runs")
    if not all(stop_all(records, timeout_s)):
        raise typer.Exit(1)


def stop_all(records: list[Record], timeout_s: float | None = None) -> list[bool]:
    """At the same time, since each may take its grace period."""
    with ThreadPoolExecutor(max(1, len(records))) as threads:
        return list(threads.map(lambda record: stop_one(record, typer.echo, timeout_s), records))
