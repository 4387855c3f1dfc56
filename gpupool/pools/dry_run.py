"""What `gpupool run` would start, checked as the start checks it (`run --dry-run`)."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from gpupool.errors import ConfigError
from gpupool.layout import make_layout
from gpupool.master_command import command
from gpupool.pools import launch
from gpupool.pools.pool_file import Wanted
from gpupool.pools.record import url_of, write_settings
from gpupool.preflight import with_engine
from gpupool.refusal import ERROR
from gpupool.setting_types import AUTO_GPUS

SECRET = "api_key"


def describe(wanted: list[Wanted]) -> str:
    """The pools with their slices and settings; ConfigError for what would be refused."""
    return "\n".join(_describe_one(pool) for pool in wanted)


def _describe_one(pool: Wanted) -> str:
    from dispatcher import GPUDispatcher

    chosen = _checked(pool)
    settings = pool.settings
    if settings.per_proc_gpus == AUTO_GPUS:
        settings = settings.model_copy(update={"per_proc_gpus": chosen})
    layout = make_layout(settings)
    settings = with_engine(settings, GPUDispatcher(layout, settings))
    lines = [f"{pool.name}: {settings.model_name} by {settings.infer_type} on {url_of(settings)}"]
    for gpu_slice in layout.slices:
        devices = [f"GPU {gpu.index} {gpu.uuid}" for gpu in gpu_slice.gpus]
        where = ", ".join(devices) or f"CPU cores {', '.join(map(str, gpu_slice.cpus))}"
        lines.append(f"  worker {gpu_slice.slot}: {where}")
    for key, value in pool.values.items():
        origin = "  (environment)" if key in pool.overlay else ""
        lines.append(f"  {key}: {'(not shown)' if key == SECRET else value}{origin}")
    lines.append(f"  {shlex.join(command())}")
    return "\n".join(lines) + "\n"


def _checked(pool: Wanted) -> int | None:
    """The preflight that the master would run; what it chose for `per_proc_gpus: auto`."""
    with tempfile.TemporaryDirectory(prefix="gpupool-") as folder:
        write_settings(Path(folder), pool.values)
        variables = launch.environment(pool, os.environ, Path(folder))
        done = subprocess.run(
            [sys.executable, "-m", "gpupool.preflight"],
            env=variables,
            cwd=pool.file.absolute().parent,
            check=False,
            capture_output=True,
            text=True,
        )
    said = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode:
        reason = said[-1].removeprefix(ERROR) if said else "its check failed"
        raise ConfigError(f"{pool.file}: pool {pool.name!r}: {reason}")
    return int(done.stdout) if done.stdout.strip().isdigit() else None
