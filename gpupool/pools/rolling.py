"""Replaces a pool's workers, one at a time, and waits for the end of that (`restart`)."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

from gpupool.errors import ConfigError
from gpupool.pools.look import View, key_of, look
from gpupool.pools.pool_file import Wanted, read_one
from gpupool.pools.record import SETTINGS, Process, Record, opened, write_settings
from gpupool.pools.run_dir import write_private
from gpupool.reload import find_fixed_change

POLL_S = 0.2

Show = Callable[[list[View]], None]


def read_again(record: Record) -> Wanted:
    """The pool as its file describes it now; ConfigError for what a running pool cannot take."""
    wanted = read_one(Path(record.file), record.name, record.overlay)
    reason = find_fixed_change(record.settings(), wanted.settings)
    if reason is not None:
        what = reason.partition("; ")[0]
        raise ConfigError(
            f"{record.file}: pool {record.name!r}: {what}; to change it, use `gpupool stop "
            f"{record.name}` and `gpupool run -f {record.file}`"
        )
    return wanted


def roll(record: Record, wanted: Wanted, show: Show) -> str | None:
    """Give a pool its new settings and wait until every worker has them, or one failed with them:
    then the reason, and the pool runs on with those before."""
    with opened(record) as process:
        before = look(record)
        if process is None or before.reload is None:
            return f"it is {before.state}: {before.reason or 'it did not answer'}"
        number = int(before.reload["asked"]) + 1
        settings = record.folder / SETTINGS
        in_force, key = settings.read_text(), key_of(record.settings())
        write_settings(record.folder, wanted.values)
        if not process.send(signal.SIGHUP):
            return "it has ended"
        given_up = _await(process, record, number, show, key)
        if given_up is not None:
            write_private(settings, in_force)  # so that the pool is asked with the key it has
        return given_up


def _await(process: Process, record: Record, number: int, show: Show, old_key: str) -> str | None:
    """Until the reload of this number, or a later one, is over. Workers before theirs have the
    old key."""
    while not process.wait(0):
        view = look(record, old_key)
        show([view])
        if view.reload is not None and int(view.reload["ended"]) >= number:
            given_up: str | None = view.reload["given_up"]
            return given_up
        time.sleep(POLL_S)
    return f"it ended: {look(record).reason}"
