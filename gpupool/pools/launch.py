"""Starts a pool as start_gunicorn.sh does: the same gunicorn, the same configuration (`run`).

What the script does beyond turning flags into environment is `gunicorn -c gunicorn_conf.py`, and
that is master_command.py.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from gpupool.master_command import command, with_root
from gpupool.pools.given import variables_of
from gpupool.pools.pool_file import Wanted
from gpupool.pools.record import SETTINGS, Record, identity_of, url_of, write_settings
from gpupool.pools.run_dir import folder_of, log_of

GO = b"g"


def environment(wanted: Wanted, environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The master's: its settings come from the file in its folder alone, in which the variables
    are already."""
    ours = variables_of(environ)
    kept = {name: value for name, value in environ.items() if name not in ours}
    kept["GPUPOOL_CONFIG"] = str(folder / SETTINGS)
    if (visible := wanted.settings.cuda_visible_devices) is not None:
        # Also for what an engine may look at before its worker's lease, or without one.
        kept["CUDA_VISIBLE_DEVICES"] = visible
    return with_root(kept)


def start(wanted: Wanted) -> Record:
    """Start a pool in the background, in a session of its own; the caller holds the lock.

    The process waits until its record is written: one that nobody knows of cannot be stopped.
    """
    folder = folder_of(wanted.name)
    write_settings(folder, wanted.values)
    variables = environment(wanted, os.environ, folder) | {
        "GPUPOOL_LOG_FILE": str(log_of(wanted.name))
    }
    gate, opener = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(opener)
        _become(wanted, variables, gate)
    os.close(gate)
    record = _record(wanted, pid)
    record.write()
    os.write(opener, GO)
    os.close(opener)
    return record


def become(wanted: Wanted) -> NoReturn:
    """Turn this process into the pool's master; the caller holds the lock until then."""
    folder = folder_of(wanted.name)
    write_settings(folder, wanted.values)
    replace(_record(wanted, os.getpid()), is_foreground=True).write()
    os.chdir(wanted.file.absolute().parent)
    os.execve(sys.executable, command(), environment(wanted, os.environ, folder))


def _record(wanted: Wanted, pid: int) -> Record:
    return Record(
        name=wanted.name,
        **identity_of(pid),
        url=url_of(wanted.settings),
        model=wanted.settings.model_name,
        file=str(wanted.file.absolute()),
        since=datetime.now().astimezone().isoformat(timespec="seconds"),
        overlay=wanted.overlay,
    )


def _become(wanted: Wanted, variables: dict[str, str], gate: int) -> NoReturn:
    """The rest of the forked child's life in this program."""
    try:
        os.setsid()
        if os.read(gate, 1) != GO:
            os._exit(1)  # who started us is gone, and perhaps nothing was written
        null = os.open(os.devnull, os.O_RDONLY)
        # Appended to by all its writers, so that the log can be cut while they have it open.
        log = os.open(log_of(wanted.name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.chdir(wanted.file.absolute().parent)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python has it ignored, for its children too
        os.execve(sys.executable, command(), variables)
    finally:
        os._exit(1)
