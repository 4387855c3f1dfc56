"""What each GPU of a pool is for, what is wrong with it and what is used of it (worker process).

All that the pool may use are told of, so that one that nobody holds is not forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpupool.vitals import GpuUse

if TYPE_CHECKING:
    from dispatcher import GPUDispatcher


@dataclass(frozen=True, slots=True)
class Standing:
    """One GPU at one moment; who holds it the scoreboard tells."""

    index: int
    uuid: str
    name: str
    is_spare: bool  # no slot's own
    fault: str | None = None  # why the pool left it out when it started
    quarantine: str | None = None  # why nobody gets it any more
    use: GpuUse | None = None  # where no worker holds it; None: not known


def standings(dispatcher: GPUDispatcher, use_of: Callable[[str], GpuUse | None]) -> list[Standing]:
    """By index. Reads memory only: the driver is not asked."""
    spares = {gpu.uuid for gpu in dispatcher.spares}
    found = [
        Standing(
            gpu.index,
            gpu.uuid,
            gpu.name,
            gpu.uuid in spares,
            quarantine=dispatcher.quarantine_reason(gpu.uuid),
            use=use_of(gpu.uuid),
        )
        for gpu in dispatcher.gpus
    ]
    found += [
        Standing(
            gpu.index,
            gpu.uuid,
            gpu.name,
            is_spare=False,
            fault=gpu.fault,
            use=use_of(gpu.uuid),
        )
        for gpu in dispatcher.layout.faulty
    ]
    return sorted(found, key=lambda one: (one.index, one.uuid))
