"""Names of pools as arguments of commands, completed by the shell."""

from __future__ import annotations

from typing import Annotated

import typer

from gpupool.errors import ConfigError
from gpupool.pools.record import read_records


def complete(incomplete: str) -> list[str]:
    """The pools that run here."""
    try:
        return [r.name for r in read_records() if r.name.startswith(incomplete)]
    except ConfigError:
        return []


Pools = Annotated[
    list[str] | None,
    typer.Argument(help="names of pools; default: all", autocompletion=complete, metavar="POOL"),
]
Pool = Annotated[
    str | None,
    typer.Argument(help="name of a pool", autocompletion=complete, metavar="POOL"),
]
