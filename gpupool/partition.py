"""GPUs -> slices, pure policy: no NVML, no locks, no processes."""

from __future__ import annotations

from dataclasses import dataclass

from gpupool.gpus import Gpu


@dataclass(frozen=True, slots=True)
class Slice:
    """The fixed set of GPUs (or, without GPUs, of CPU cores) given to one worker.

    Not a MIG slice: a MIG device counts as one GPU here.
    """

    slot: int  # which worker of the pool, 0-based
    gpus: tuple[Gpu, ...]
    cpus: tuple[int, ...]  # cores to pin to; near the GPUs, or the share of a CPU slice
