"""What the hooks of gunicorn_conf.py do in the master. Imports no engine and nothing of CUDA."""

from __future__ import annotations

import logging
import os
import resource
import sys
import time
from collections.abc import Iterable
from functools import cache

from dispatcher import GPUDispatcher
from gpupool.backoff import Record
from gpupool.mailbox import Mailboxes
from gpupool.master_command import with_root
from gpupool.process_group import kill_all_but_trackers
from gpupool.scoreboard import Scoreboard
from gpupool.setting_types import HOSTED
from gpupool.settings import Settings, pool_name, read_settings
from gpupool.worker import PoolWorker

log = logging.getLogger(__name__)


def process_name(settings: Settings) -> str:
    """What `ps` shows of the pool: its name, if it has one, and its model."""
    name = pool_name()
    return f"gpupool {name}: {settings.model_name}" if name else f"gpupool {settings.model_name}"


def leave_to_ray() -> None:
    """Become the launcher of a pool on Ray, if that is what the settings say; nothing is bound or
    forked yet. In the environment, which is all that is left, the preflight has put its choices."""
    if read_settings().launcher == "ray":
        launcher = [sys.executable, "-m", "gpupool.ray_pool.launcher"]
        os.execve(sys.executable, launcher, with_root(os.environ))


def bind_address(settings: Settings) -> str:
    """host:port as gunicorn wants it."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{host}:{settings.port}"


def raise_file_limit(wanted: int) -> int:
    """Raise this process's limit of open files as far as allowed; returns how many connections
    each worker can then hold, with files to spare for its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted + 256 if hard == resource.RLIM_INFINITY else min(wanted + 256, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        soft = limit
    return min(wanted, max(64, soft - 256))


def announce(settings: Settings, dispatcher: GPUDispatcher) -> None:
    """Say once what will start where."""
    log.info(
        "gpupool: %s by %s on http://%s, %d worker(s)",
        settings.model_name,
        settings.infer_type,
        bind_address(settings),
        len(dispatcher.slices),
    )
    for gpu_slice in dispatcher.slices:
        devices = [f"GPU {gpu.index} {gpu.uuid}" for gpu in gpu_slice.gpus]
        where = ", ".join(devices) or f"CPU cores {', '.join(map(str, gpu_slice.cpus))}"
        log.info("worker %d: %s", gpu_slice.slot, where)
    if settings.infer_type == HOSTED:
        log.info("a hosted model: no GPU is leased")
    elif not dispatcher.slices[0].gpus:
        log.info("no GPU here (no NVIDIA driver library): the model runs on CPU cores")
    for gpu in dispatcher.spares:
        log.info("spare: GPU %d %s (not enough for another worker)", gpu.index, gpu.uuid)


@cache
def shared_dispatcher() -> GPUDispatcher:
    """The pool's dispatcher: a reload runs the configuration again, but keeps the slices, who
    holds them, and what is quarantined."""
    return GPUDispatcher.for_settings(read_settings())


@cache
def shared_scoreboard(num_slots: int) -> Scoreboard:
    """The pool's scoreboard: a reload runs the configuration again, but keeps this."""
    return Scoreboard(num_slots)


@cache
def shared_mailboxes(num_slots: int) -> Mailboxes:
    """One for each row of the scoreboard, kept over a reload like it."""
    return Mailboxes(len(shared_scoreboard(num_slots)))


def free_row(workers: Iterable[PoolWorker], scoreboard: Scoreboard, slot: int) -> int:
    """A row of the slot that no living worker has."""
    taken = {worker.row_index for worker in workers}
    return [index for index in scoreboard.rows_of(slot) if index not in taken][0]


def note_exit(worker: PoolWorker) -> None:
    """Count a worker's end and make sure of its engine's."""
    kill_all_but_trackers(worker.pid)
    worker.row.restarts += 1
    worker.row.pid = 0
    worker.row.enter("starting")


def show_error(scoreboard: Scoreboard, slot: int, reason: str) -> None:
    """Why a slot's worker failed, on the row that is shown while the slot has none."""
    row = scoreboard[scoreboard.rows_of(slot)[0]]
    if not row.pid:
        row.describe(last_error=reason)


def show_back_off(scoreboard: Scoreboard, slot: int, record: Record) -> None:
    """When a slot without a worker gets its next one."""
    row = scoreboard[scoreboard.rows_of(slot)[0]]
    left_s = record.not_before - time.monotonic()
    if left_s > 0:
        if row.state != "failed":
            row.enter("failed")
        row.failures = record.failures
        row.describe(phase=f"next try in {left_s:.0f} s")


def hopeless_reason(scoreboard: Scoreboard) -> str:
    """Why the service ends, in one line."""
    errors = [scoreboard[slot].last_error for slot in range(scoreboard.num_slots)]
    if len(set(errors)) == 1:
        return f"no worker can ever be ready: {errors[0]}"
    each = "; ".join(f"worker {slot}: {error}" for slot, error in enumerate(errors))
    return f"no worker can ever be ready: {each}"


def kill_group(pid: int, number: int) -> None:
    """Signal a worker's process group: the engine's processes are in it."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        log.debug("process group %s is gone already", pid)
