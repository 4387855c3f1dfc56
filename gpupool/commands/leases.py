"""`gpupool leases`: who holds which GPU of this machine (a process of its own)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from gpupool import lockdir
from gpupool.commands.spelling import flag
from gpupool.pools import leases as held
from gpupool.pools.record import read_records


def leases(
    lock_dir: Annotated[
        Path | None, flag("lock_dir", "directory of the leases; default: as for a pool")
    ] = None,
    as_json: Annotated[bool, flag("json", "print JSON")] = False,
) -> None:
    """Show who holds each GPU of this machine.

    Pool, worker, process, user, model, and since when.
    """
    asked = lock_dir or os.environ.get("GPUPOOL_LOCK_DIR") or None
    directory = lockdir.open_lock_dir(Path(asked) if asked else None)
    pools = {record.lease_owner: record.name for record in read_records()}
    found = held.read_leases(directory, held.visible_gpus(), pools)
    if as_json:
        typer.echo(json.dumps(held.as_data(found, directory), indent=2))
    else:
        typer.echo(held.render(found, directory), nl=False)
