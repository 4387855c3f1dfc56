"""Names of pools as arguments of commands, completed by the shell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpupool.errors import ConfigError
from gpupool.pools.pool_file import names_in
from gpupool.pools.record import read_records


def complete(incomplete: str) -> list[str]:
    """The pools that run here."""
    try:
        return [r.name for r in read_records() if r.name.startswith(incomplete)]
    except ConfigError:
        return []


def complete_of_file(context: typer.Context, incomplete: str) -> list[str]:
    """The pools of the file that stands before on the line."""
    try:
        found = names_in(Path(context.params.get("file") or "pool.yaml"))
    except ConfigError:
        return []
    return [name for name in found if name.startswith(incomplete)]


Pools = Annotated[
    list[str] | None,
    typer.Argument(help="names of pools; default: all", autocompletion=complete, metavar="POOL"),
]
Pool = Annotated[
    str | None,
    typer.Argument(help="name of a pool", autocompletion=complete, metavar="POOL"),
]
