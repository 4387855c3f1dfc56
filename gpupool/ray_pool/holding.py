"""A replica's hold on what Ray gave it: the slice, the lease on it, the guardian (replica process).

Ray hands out GPUs by number, and knows nothing of what else runs on the machine. So the replica
takes the same locks as every worker of every pool there, and what a dead one left on its GPUs is
gone before it loads. Imports neither torch nor an engine.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dispatcher import GPUDispatcher, Lease
from gpupool import guardian, lockdir
from gpupool.boot import LEASE_RETRY_S, MEMORY_FREE_TIMEOUT_S, trouble_of
from gpupool.errors import ConfigError, NotGranted
from gpupool.gpus import Inventory, read_inventory, select_visible
from gpupool.guardian import Guardian
from gpupool.layout import Layout
from gpupool.partition import Slice, cut_cpus, near_cpus
from gpupool.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seat:
    """Which replica this is: of all, and among those of its node."""

    rank: int
    local_rank: int
    per_node: int


class Holding:
    """From the replica's start to its end, however that comes: the guardian ends what is left."""

    def __init__(self, settings: Settings, gpu_ids: Sequence[str], seat: Seat) -> None:
        self._seat = seat
        self._guardian: Guardian = guardian.start_beside()
        self._lease: Lease | None = None
        layout, self._place = _layout(settings, gpu_ids, seat)
        self._dispatcher = GPUDispatcher(layout, settings)

    def take(self) -> Slice:
        """Lease what Ray gave; waits while somebody else has it. The slot is the replica's rank."""
        told = ""
        for count in itertools.count():
            found = self._try()
            if isinstance(found, Lease):
                return replace(found.slice, slot=self._seat.rank)
            if found != told:
                log.warning("replica %d waits for its GPUs: %s", self._seat.rank, found)
                told = found
            time.sleep(LEASE_RETRY_S[min(count, 2)])
        raise AssertionError("never reached")

    def trouble(self) -> str | None:
        """Why the hold is not safe any more, or None. Cheap."""
        return trouble_of(self._guardian, self._lease)

    def _try(self) -> Lease | str:
        """The lease, or why there is none yet."""
        grant = self._dispatcher.acquire(self._place)
        lease = grant.lease
        if lease is None:
            return grant.reason
        self._guardian.hold(lease.fds)
        lease.bind()
        try:
            lease.await_free(MEMORY_FREE_TIMEOUT_S)
        except NotGranted as error:
            lease.release()
            self._guardian.hold(())
            return str(error)
        self._lease = lease
        return lease


def _layout(settings: Settings, gpu_ids: Sequence[str], seat: Seat) -> tuple[Layout, int]:
    """What this replica may take, as a pool of its own would have it, and which slice of it."""
    if not gpu_ids:
        cores = cut_cpus(os.sched_getaffinity(0), seat.per_node)
        return Layout(slices=cores), seat.local_rank % seat.per_node
    inventory = read_inventory()
    gpus = select_visible(_known(inventory, gpu_ids), ",".join(gpu_ids))
    lock_dir = lockdir.open_lock_dir(settings.lock_dir)
    lockdir.prepare(lock_dir, gpus)
    mine = Slice(0, gpus, near_cpus(gpus))
    return Layout(slices=(mine,), inventory=inventory, lock_dir=lock_dir), 0


def _known(inventory: Inventory | None, gpu_ids: Sequence[str]) -> Inventory:
    if inventory is None:
        raise ConfigError(
            f"Ray gave this replica GPU {','.join(gpu_ids)}, but there is no NVIDIA driver library "
            "on its node (libnvidia-ml.so.1); start that node with --num-gpus 0, or its container "
            "with its GPUs"
        )
    return inventory
