"""What the hooks of gunicorn_conf.py do in the master. Imports no engine and nothing of CUDA."""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import Iterable

from dispatcher import GPUDispatcher
from gpupool.settings import Settings
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


def free_slot(workers: Iterable[PoolWorker], num_slots: int) -> int:
    """The lowest slot that no living worker has. While a reload keeps old workers beside new
    ones all are taken: then the one of the oldest worker, which leaves first."""
    living = sorted(workers, key=lambda worker: worker.age)
    taken = {worker.slot for worker in living}
    free = [slot for slot in range(num_slots) if slot not in taken]
    return free[0] if free else living[0].slot


def note_exit(worker: PoolWorker) -> None:
    """Count a worker's end and make sure of its engine's."""
    kill_group(worker.pid, signal.SIGKILL)
    worker.row.restarts += 1
    if worker.row.pid == worker.pid:
        worker.row.enter("starting")
    log.info("worker %d ended pid=%s", worker.slot, worker.pid)


def kill_group(pid: int, number: int) -> None:
    """Signal a worker's process group: the engine's processes are in it."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        log.debug("process group %s is gone already", pid)
