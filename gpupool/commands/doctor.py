"""`gpupool doctor`: what is wrong with this machine, with the fix beside it (its own process)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from gpupool.commands.spelling import flag
from gpupool.doctor.facts import examine
from gpupool.pools.pool_file import read_pool_file


def doctor(
    file: Annotated[
        Path | None, flag("file", "also look at what the pools of this file need", "-f")
    ] = None,
) -> None:
    """Check for common problems, with each fix beside it.

    Exit 1: something is wrong.
    """
    wanted = read_pool_file(file, os.environ) if file is not None else []
    num_wrong = 0
    for finding in examine(wanted):
        typer.echo(finding.render())
        num_wrong += finding.is_wrong
    if num_wrong:
        raise typer.Exit(1)
