"""Looks at the machine for the doctor's checks (a process of its own). Touches nothing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gpupool import lockdir, preflight, procfs
from gpupool.doctor import machine, models, processes
from gpupool.doctor.finding import Finding
from gpupool.errors import ConfigError, GpupoolError
from gpupool.gpus import read_inventory
from gpupool.pools.pool_file import Wanted
from gpupool.pools.record import Record, read_records, url_of

MODULES = "gpupool.hooks, gpupool.master, gpupool.preflight"
MAPS = f"import {MODULES}; print(open('/proc/self/maps').read())"


def examine(wanted: Sequence[Wanted]) -> Iterator[Finding]:
    """Every check, for the pools of a file, or for the machine alone."""
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("driver", driver),
        ("CUDA before fork", fork),
        ("/dev/shm", shm),
        ("limits", limits),
        *((f"port of {pool.name}", lambda pool=pool: port(pool)) for pool in wanted),
        ("orphaned engines", orphans),
        ("lock directory", lambda: lock_dir(wanted)),
        ("disk for models", lambda: models.check_disk(cache(), missing_models(wanted))),
        (
            "Hugging Face cache",
            lambda: models.check_cache(cache(), os.environ, missing_models(wanted)),
        ),
        ("Ray's memory monitor", ray),
        ("Ray's health checks", ray_nodes),
        ("versions", versions),
    ]
    for name, check in checks:
        try:
            yield check()
        except (OSError, GpupoolError, subprocess.SubprocessError) as error:
            yield Finding(name, f"it cannot be looked at: {error}", "see whether this user may")


def driver() -> Finding:
    """NVML's answer, and the GPUs' faults."""
    try:
        found = read_inventory()
    except ConfigError as error:
        return machine.check_driver(machine.Driver(error=str(error)))
    if found is None:
        return machine.check_driver(machine.Driver())
    faults = [f"GPU {gpu.index} ({gpu.uuid}): {gpu.fault}" for gpu in found.gpus if gpu.fault]
    return machine.check_driver(machine.Driver("", found.driver, len(found.gpus), faults))


def fork() -> Finding:
    """What a fresh Python with the master's modules loads, and what running masters have."""
    done = subprocess.run(
        [sys.executable, "-c", MAPS], check=True, capture_output=True, text=True, timeout=60
    )
    masters = {record.name: processes.cuda_in(_maps(record)) for record in read_records()}
    return processes.check_fork(processes.cuda_in(done.stdout), masters)


def _maps(record: Record) -> str:
    if not record.is_running:
        return ""
    return Path(f"/proc/{record.pid}/maps").read_text(errors="replace")


def shm() -> Finding:
    """Its size and its room."""
    found = shutil.disk_usage("/dev/shm")
    is_writable = os.access("/dev/shm", os.W_OK)
    return machine.check_shm(found.total, found.free, is_writable=is_writable)


def limits() -> Finding:
    """Hard ones: the master raises its own soft limit of files."""
    num_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    num_processes = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    return machine.check_limits(num_files, num_processes)


def port(wanted: Wanted) -> Finding:
    """Whether it could listen; its own pool may have the port already."""
    url = url_of(wanted.settings)
    is_own = any(
        record.name == wanted.name and record.url == url and record.is_running
        for record in read_records()
    )
    refusal = None if is_own else preflight.port_refusal(wanted.settings)
    return processes.check_port(wanted.name, refusal, is_own=is_own)


def orphans() -> Finding:
    """Every process of this user, or of all for root, that carries a lease's token."""
    import psutil

    found, records = [], read_records()
    for process in psutil.process_iter():
        try:
            if "GPUPOOL_LEASE" not in process.environ():
                continue
            parents = [parent.cmdline() for parent in process.parents()]
            pool = next((r.name for r in records if r.is_engine(process.pid)), "")
            shown = procfs.describe(process.pid)
        except psutil.Error:
            continue  # gone, or somebody else's
        shown = f"{shown.removesuffix(')')}, pool {pool})" if pool else shown
        found.append(processes.EngineProcess(process.pid, shown, parents, pool))
    return processes.check_orphans(found)


def lock_dir(wanted: Sequence[Wanted]) -> Finding:
    """Whether a lock can be taken there."""
    given = next((pool.settings.lock_dir for pool in wanted if pool.settings.lock_dir), None)
    asked = given or os.environ.get("GPUPOOL_LOCK_DIR")
    try:
        path = lockdir.open_lock_dir(Path(asked) if asked else None)
        lockdir.prepare(path, ())
        is_shared = stat.S_IMODE(path.stat().st_mode) & 0o777 == 0o777
        if not os.access(path, os.W_OK):
            raise ConfigError(f"{path} cannot be written by this user")
    except ConfigError as error:
        return machine.check_lock_dir(str(asked), str(error), is_shared=False)
    return machine.check_lock_dir(str(path), "", is_shared=is_shared)


def cache() -> models.Cache:
    """Hugging Face's folder, or the nearest one above it that is there."""
    home = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    path = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"))
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    free_bytes = shutil.disk_usage(there).free
    return models.Cache(str(path), os.access(there, os.W_OK), free_bytes)


def missing_models(wanted: Sequence[Wanted]) -> list[str]:
    """Ids of models that would have to be downloaded."""
    folder = Path(cache().path)
    names = [pool.settings.model_name for pool in wanted]
    return [name for name in dict.fromkeys(names) if _is_id(name) and not _is_there(folder, name)]


def _is_id(name: str) -> bool:
    is_path = Path(name).exists() or name.startswith(("/", "."))
    return not is_path and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def _is_there(folder: Path, name: str) -> bool:
    snapshots = folder / f"models--{name.replace('/', '--')}" / "snapshots"
    return snapshots.is_dir() and any(snapshots.iterdir())


def ray() -> Finding:
    """Its variables here, which count where `ray start` runs, and this machine's memory."""
    import psutil

    is_installed = importlib.util.find_spec("ray") is not None
    used_share = psutil.virtual_memory().percent / 100
    return machine.check_ray(os.environ, used_share, is_installed=is_installed)


def ray_nodes() -> Finding:
    """Its variables here, which count where `ray start` runs."""
    is_installed = importlib.util.find_spec("ray") is not None
    return machine.check_ray_nodes(os.environ, is_installed=is_installed)


def versions() -> Finding:
    """What is installed, against what gpupool's metadata asks."""
    try:
        required = importlib.metadata.requires("gpupool") or []
    except importlib.metadata.PackageNotFoundError:
        required = []  # a checkout that was not installed
    installed = {
        re.sub(r"[-_.]+", "-", found.metadata["Name"] or "").lower(): found.version
        for found in importlib.metadata.distributions()
    }
    return models.check_versions(sys.version_info[:2], required, installed)
