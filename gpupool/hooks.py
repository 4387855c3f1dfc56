"""What the hooks of gunicorn_conf.py do in the master. Imports no engine and nothing of CUDA."""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections import Counter
from collections.abc import Iterable
from functools import cache

from dispatcher import GPUDispatcher
from gpupool.mailbox import Mailboxes
from gpupool.scoreboard import Scoreboard
from gpupool.settings import Settings, read_settings
from gpupool.worker import PoolWorker

log = logging.getLogger(__name__)


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
    if not dispatcher.slices[0].gpus:
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


def free_row(workers: Iterable[PoolWorker], scoreboard: Scoreboard) -> int:
    """A row that no living worker has, of the slot with the fewest. While a reload keeps old
    workers beside new ones, each slot so gets one of each, and the new one waits for the old
    one's GPUs."""
    living = list(workers)
    taken = {worker.row_index for worker in living}
    holders = Counter(worker.slot for worker in living)
    slot = min(range(scoreboard.num_slots), key=lambda slot: holders[slot])
    free = [index for index in scoreboard.rows_of(slot) if index not in taken]
    return free[0]


def note_exit(worker: PoolWorker) -> None:
    """Count a worker's end and make sure of its engine's."""
    kill_group(worker.pid, signal.SIGKILL)
    worker.row.restarts += 1
    worker.row.pid = 0
    worker.row.enter("starting")
    log.info("worker %d ended pid=%s", worker.slot, worker.pid)


def kill_group(pid: int, number: int) -> None:
    """Signal a worker's process group: the engine's processes are in it."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        log.debug("process group %s is gone already", pid)
