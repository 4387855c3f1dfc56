"""`gpupool status`: every pool and worker, once or live (a process of its own)."""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from typing import Annotated

import typer

from gpupool.commands.names import Pools
from gpupool.commands.spelling import flag
from gpupool.pools.look import View, look_at
from gpupool.pools.record import select_records
from gpupool.pools.render import Rates, as_data, rates_between, render

SAMPLE_S = 1.0
REFRESH_S = 1.0
RATE_OVER = 10  # looks


def status(
    pools: Pools = None,
    watch: Annotated[bool, flag("watch", "show it live, until Ctrl-C", "-w")] = False,
    as_json: Annotated[bool, flag("json", "print JSON, as /pool tells the workers")] = False,
) -> None:
    """Show every pool with its workers.

    Exit 1: one is not ready. tok/s counts the tokens of requests that ended within the last
    seconds.
    """
    if watch:
        _watch(pools or [])
        return
    views, rates = _sampled(pools or [])
    if as_json:
        typer.echo(json.dumps(as_data(views, rates), indent=2))
    else:
        typer.echo(render(views, rates), nl=False)
    if not all(view.is_ready for view in views):
        raise typer.Exit(1)


def _sampled(names: list[str]) -> tuple[list[View], Rates]:
    """Two looks where something runs; rates are known only between two."""
    before, began = look_at(select_records(names)), time.monotonic()
    is_busy = any(worker["inflight"] for view in before for worker in view.workers)
    if not is_busy:
        return before, rates_between(before, before, 1)
    time.sleep(SAMPLE_S)
    after = look_at(select_records(names))
    return after, rates_between(before, after, time.monotonic() - began)


def _watch(names: list[str]) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    looks: deque[tuple[float, list[View]]] = deque(maxlen=RATE_OVER)
    console = Console()
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            views, now = look_at(select_records(names)), time.monotonic()
            looks.append((now, views))
            began, first = looks[0]
            shown = render(views, rates_between(first, views, now - began))
            if console.is_terminal:
                live.update(Text(shown, no_wrap=True, overflow="ellipsis"), refresh=True)
            else:
                typer.echo(shown)
            time.sleep(REFRESH_S)
