"""`gpupool schema`: the JSON schema of pool.yaml, for editors (a process of its own)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpupool.commands.spelling import flag
from gpupool.pools.schema import render_schema


def schema(
    output: Annotated[Path | None, flag("output", "write there instead of printing", "-o")] = None,
) -> None:
    """Print the JSON schema of pool.yaml."""
    if output is None:
        typer.echo(render_schema(), nl=False)
    else:
        output.write_text(render_schema())
