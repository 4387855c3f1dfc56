"""`gpupool doctor`: what is wrong with this machine, with the fix beside it (its own process)."""

from __future__ import annotations

import json
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
    as_json: Annotated[bool, flag("json", "print JSON: name, is_wrong, text, fix of each")] = False,
) -> None:
    """Check for common problems, with each fix beside it.

    Exit 1: something is wrong.
    """
    wanted = read_pool_file(file, os.environ) if file is not None else []
    found = []
    for finding in examine(wanted):
        found.append(finding)
        if not as_json:
            typer.echo(finding.render())
    if as_json:
        typer.echo(json.dumps({"checks": [finding.as_data() for finding in found]}, indent=2))
    if any(finding.is_wrong for finding in found):
        raise typer.Exit(1)
