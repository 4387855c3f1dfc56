"""Checks of the machine: driver, shared memory, limits, the folder of the leases, Ray (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpupool.doctor.finding import Finding

GIB = 1 << 30
MIN_SHM_BYTES = GIB
MIN_FILES = 4096
MIN_PROCESSES = 4096
UNLIMITED = -1
RAY_THRESHOLD = 0.95  # Ray's default share of the node's memory
RAY_MARGIN = 0.05
RAY_CHECKS = {
    "RAY_health_check_period_ms": (3000, 1000),
    "RAY_health_check_timeout_ms": (10000, 2000),
    "RAY_health_check_failure_threshold": (5, 3),
}
"""By variable: Ray's default, and what to use where a dead node is to be missed soon."""


@dataclass(frozen=True, slots=True)
class Driver:
    """What NVML says."""

    error: str = ""
    version: str = ""
    num_gpus: int | None = None  # None: no NVIDIA library here
    faults: Sequence[str] = ()


def check_driver(found: Driver) -> Finding:
    """Whether NVML answers, and every GPU can be used."""
    name = "driver"
    if "mismatch" in found.error.lower():
        fix = "reboot, or unload and load the nvidia modules: the library was updated under them"
        return Finding(name, found.error, fix)
    if found.error:
        return Finding(name, found.error, "make `nvidia-smi` work first; `dmesg` says more")
    if found.num_gpus is None:
        return Finding(name, "no NVIDIA driver library here; models run on CPU cores")
    if found.faults:
        fix = "leave it out with --cuda_visible_devices, or see docs/gpus.md"
        return Finding(name, "; ".join(found.faults), fix)
    return Finding(name, f"{found.version}, {found.num_gpus} GPU(s)")


def check_shm(total_bytes: int, free_bytes: int, *, is_writable: bool) -> Finding:
    """Whether vLLM and NCCL can talk through /dev/shm."""
    name, free = "/dev/shm", f"{free_bytes / GIB:.1f} of {total_bytes / GIB:.1f} GiB free"
    if not is_writable:
        return Finding(name, "cannot be written", "mount it: mount -t tmpfs tmpfs /dev/shm")
    if total_bytes < MIN_SHM_BYTES:
        return Finding(name, free, "in a container: docker run --shm-size 16g, or --ipc host")
    if free_bytes < MIN_SHM_BYTES:
        return Finding(name, free, "remove what dead programs left: ls -l /dev/shm")
    return Finding(name, free)


def check_limits(num_files: int, num_processes: int) -> Finding:
    """Whether this user may have enough open files and threads: hard limits, -1 without."""
    name = "limits"
    if num_files != UNLIMITED and num_files < MIN_FILES:
        fix = "raise `ulimit -Hn` (LimitNOFILE= of systemd): each idle connection is a file"
        return Finding(name, f"{num_files} open files", fix)
    if num_processes != UNLIMITED and num_processes < MIN_PROCESSES:
        fix = "raise `ulimit -Hu` (TasksMax= of systemd): engines have thousands of threads"
        return Finding(name, f"{num_processes} processes and threads", fix)
    shown = "unlimited" if num_files == UNLIMITED else num_files
    return Finding(name, f"{shown} open files")


def check_lock_dir(path: str, error: str, *, is_shared: bool) -> Finding:
    """Whether leases can be taken where every service looks for them."""
    name = "lock directory"
    if error:
        return Finding(name, error, "as root: mkdir -p /run/lock/gpupool, chmod 1777 it")
    if not is_shared:
        fix = f"chmod 1777 {path}, unless this user alone starts pools here"
        return Finding(name, f"{path} is closed to other users", fix)
    return Finding(name, path)


def check_ray(environ: Mapping[str, str], used_share: float, *, is_installed: bool) -> Finding:
    """Whether Ray's memory monitor is about to kill workers, or was told nonsense."""
    name = "Ray's memory monitor"
    asked = environ.get("RAY_memory_usage_threshold", "")
    threshold = _number(asked) if asked else RAY_THRESHOLD
    if threshold is None or not 0 < threshold <= 1:
        fix = "set it to a share such as 0.99, where ray start runs"
        return Finding(name, f"RAY_memory_usage_threshold is {asked!r}", fix)
    refresh = environ.get("RAY_memory_monitor_refresh_ms", "")
    if refresh and not refresh.isdigit():
        fix = "set it to milliseconds, or to 0 for no monitor"
        return Finding(name, f"RAY_memory_monitor_refresh_ms is {refresh!r}", fix)
    if not is_installed:
        return Finding(name, "Ray is not installed here")
    if refresh == "0":
        return Finding(name, "off")
    text = f"{used_share:.0%} of the memory are used, it kills from {threshold:.0%} on"
    if used_share > threshold - RAY_MARGIN:
        fix = "set RAY_memory_usage_threshold=0.99 or RAY_memory_monitor_refresh_ms=0 where ray "
        return Finding(name, text, f"{fix}start runs, on every node")
    return Finding(name, text)


def check_ray_nodes(environ: Mapping[str, str], *, is_installed: bool) -> Finding:
    """How Ray's head finds out that a node is dead, whose replicas get requests until then."""
    name = "Ray's health checks"
    advice = " ".join(f"{field}={advised}" for field, (_, advised) in RAY_CHECKS.items())
    for field in RAY_CHECKS:
        asked = environ.get(field, "")
        if asked and (not asked.isdigit() or int(asked) == 0):
            fix = f"set {advice} where ray start runs, on every node"
            return Finding(name, f"{field} is {asked!r}", fix)
    if not is_installed:
        return Finding(name, "Ray is not installed here")
    period_ms, timeout_ms, count = (
        int(environ.get(field) or default) for field, (default, _) in RAY_CHECKS.items()
    )
    text = f"a node is dead after {count} without an answer within {timeout_ms} ms, each "
    text += f"{period_ms} ms after the one before"
    if any(int(environ.get(field) or was) > use for field, (was, use) in RAY_CHECKS.items()):
        text += f"; on a cluster sooner with {advice}, on every node"
    return Finding(name, text)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
