"""What each GPU of a pool is for, and what is wrong with it (worker process).

All that the pool may use are told of, so that one that nobody holds is not forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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


def standings(dispatcher: GPUDispatcher) -> list[Standing]:
    """By index. Reads memory only: the driver is not asked."""
    spares = {gpu.uuid for gpu in dispatcher.spares}
    found = [
        Standing(
            gpu.index,
            gpu.uuid,
            gpu.name,
            gpu.uuid in spares,
            quarantine=dispatcher.quarantine_reason(gpu.uuid),
        )
        for gpu in dispatcher.gpus
    ]
    found += [
        Standing(gpu.index, gpu.uuid, gpu.name, is_spare=False, fault=gpu.fault)
        for gpu in dispatcher.layout.faulty
    ]
    return sorted(found, key=lambda one: (one.index, one.uuid))
