"""Who uses a GPU that nobody holds a lease on (pure, but for names of processes in /proc)."""

from __future__ import annotations

from collections.abc import Container

from gpupool import procfs
from gpupool.gpus import Gpu

GIB = 1 << 30


def threshold_bytes(gpu: Gpu) -> int:
    """More than this is use: a desktop, a monitor or a left-over context needs less."""
    return max(GIB, gpu.total_bytes // 50)


def is_free(gpu: Gpu, ignored_pids: Container[int] = ()) -> bool:
    """Whether neither the memory nor a process says that somebody uses the GPU."""
    return gpu.used_bytes <= threshold_bytes(gpu) and not foreign_pids(gpu, ignored_pids)


def foreign_pids(gpu: Gpu, ignored_pids: Container[int] = ()) -> list[int]:
    """The processes with more of the GPU's memory than the threshold."""
    limit = threshold_bytes(gpu)
    return [pid for pid, used in gpu.processes if used > limit and pid not in ignored_pids]


def explain(gpu: Gpu) -> str:
    """`70.0 GiB of GPU 1 (GPU-...) are in use by pid 4242 (python3, user bob)`."""
    users = [procfs.describe(pid) for pid, used in sorted(gpu.processes, key=lambda p: -p[1])]
    who = ", ".join(users[:3]) or "processes that are not visible from here"
    return f"{gpu.used_bytes / GIB:.1f} GiB of GPU {gpu.index} ({gpu.uuid}) are in use by {who}"
