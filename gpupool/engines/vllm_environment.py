"""The environment variables vLLM reads, set before its first import (worker, preflight).

Imports nothing of vLLM. The slice's GPUs and ports are in the environment already: the lease
put them there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from gpupool.errors import ConfigError

SAFE = {
    # A forked child of a process with threads, gRPC or CUDA hangs or crashes sooner or later.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # setproctitle would overwrite the environment by which the guardian knows our processes.
    "SPT_NOENV": "1",
}
"""Not for the user to change."""

DEFAULTS = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # A picture is fetched from where the operator allowed it, not from where that one points.
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    # The processes of one engine are on one machine, whatever its name resolves to.
    "VLLM_HOST_IP": "127.0.0.1",
}

KEY = "VLLM_API_KEY"

SOCKET_NAME = 36
"""Characters: vLLM calls its Unix sockets by UUIDs."""


def keep_sockets_in(folder: Path) -> None:
    """vLLM leaves its sockets behind when it is killed, by default in the folder for temporary
    files, and one that restarts its engines for months would fill that."""
    os.environ["VLLM_RPC_BASE_PATH"] = str(folder)


def require_keys_are_ours(*, has_keys: bool) -> None:
    """ConfigError where the operator means to have a key and the pool would have none."""
    if os.environ.get(KEY) and not has_keys:
        raise ConfigError(
            f"{KEY} is set, and it is the pool that asks for keys: give it as --api_key or in "
            f"--api_key_file, or unset {KEY}"
        )


def set_environment(cpus: Sequence[int]) -> None:
    """Prepare this process for an engine, on the CPU if cores are given; what the user has set
    stays."""
    os.environ.update(SAFE)
    # The pool asks for the key; behind it, vLLM's application would ask once more.
    os.environ.pop(KEY, None)
    defaults = dict(DEFAULTS)
    if cpus:
        cores = one_per_core(cpus)
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
        defaults["OMP_NUM_THREADS"] = str(len(cores))
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def one_per_core(cpus: Iterable[int]) -> list[int]:
    """The first hardware thread of each core: a second one per core slows matrix products."""
    seen: set[str] = set()
    chosen = []
    for cpu in sorted(cpus):
        core = _siblings(cpu)
        if core not in seen:
            seen.add(core)
            chosen.append(cpu)
    return chosen


def _siblings(cpu: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return path.read_text().strip()
    except OSError:
        return str(cpu)
