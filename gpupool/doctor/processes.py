"""Checks of processes: what the master has loaded, ports, engines that nobody owns (pure)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from gpupool.doctor.finding import Finding
from gpupool.pool_process import is_pool

CUDA_LIBRARIES = ("libcuda.so", "libcudart", "libtorch", "libc10_cuda")


def cuda_in(maps: str) -> set[str]:
    """The libraries of CUDA and torch in a /proc/PID/maps."""
    return {name for name in CUDA_LIBRARIES if f"/{name}" in maps}


def check_fork(at_start: Collection[str], masters: Mapping[str, Collection[str]]) -> Finding:
    """Whether something brings CUDA into a master before it forks; its workers could not use the
    GPUs then. `at_start` is what a fresh Python with the master's modules has loaded."""
    name = "CUDA before fork"
    if at_start:
        fix = "remove what imports it at Python's start: a .pth file, sitecustomize, LD_PRELOAD"
        return Finding(name, f"a fresh master has {', '.join(sorted(at_start))}", fix)
    touched = {pool: found for pool, found in masters.items() if found}
    for pool, found in touched.items():
        fix = f"gpupool stop {pool}, and look for a plug-in that imports it outside a function"
        return Finding(name, f"the master of {pool} has {', '.join(sorted(found))}", fix)
    return Finding(name, "no master has loaded any of it")


def check_port(pool: str, refusal: str | None, *, is_own: bool) -> Finding:
    """Whether a pool can listen; `refusal` is what its start would say."""
    name = f"port of {pool}"
    if is_own:
        return Finding(name, "it runs and has it")
    if refusal is None:
        return Finding(name, "free")
    found, _, remedy = refusal.partition("; ")
    return Finding(name, found, remedy or "use another port")


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """A process that was started with a lease of ours in its environment."""

    pid: int
    shown: str
    ancestors: Sequence[Sequence[str]]  # the command lines of its parents, nearest first
    pool: str = ""  # whose session it is in, if gpupool run of this user started that


def check_orphans(found: Sequence[EngineProcess]) -> Finding:
    """Whether engines of ours run without a worker: with its guardian killed as well, one may."""
    name = "orphaned engines"
    orphans = [process for process in found if not any(map(is_pool, process.ancestors))]
    if not orphans:
        return Finding(name, f"none; {len(found)} process(es) of engines have their worker")
    shown = ", ".join(process.shown for process in orphans)
    return Finding(name, f"{len(orphans)} without a worker: {shown}", _end(orphans))


def _end(orphans: Sequence[EngineProcess]) -> str:
    """The gentlest commands that end every one of them."""
    pools = sorted({process.pool for process in orphans if process.pool})
    pids = " ".join(str(process.pid) for process in orphans if not process.pool)
    stop = [f"gpupool stop {' '.join(pools)}"] if pools else []
    kill = [f"kill {pids}, and where that does not help kill -9 {pids}"] if pids else []
    return "; ".join(stop + kill)
