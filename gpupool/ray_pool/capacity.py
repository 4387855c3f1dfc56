"""How many replicas a cluster has room for (pure; launcher)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpupool.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Plan:
    """The replicas of a pool, and what Ray reserves for each."""

    num_replicas: int
    num_gpus: int
    num_cpus: int
    per_node: int
    """As many as one node may get: they share its cores out."""

    @property
    def actor_options(self) -> dict[str, int]:
        """Both are always said: a replica that asks for a GPU alone needs a CPU too, by Ray's
        defaults, and waits for ever without a word where there are fewer CPUs than GPUs."""
        return {"num_gpus": self.num_gpus, "num_cpus": self.num_cpus}


def plan(nodes: Sequence[Mapping[str, float]], per_replica: int, asked: int | None) -> Plan:
    """`nodes` are the resources of each. ConfigError where so many replicas would never start."""
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    if any(gpus):
        return _plan_gpus(gpus, per_replica, asked)
    if per_replica > 1:
        raise ConfigError(
            f"--per_proc_gpus (PER_PROC_GPUS) is {per_replica}, but Ray knows of no GPU. Use 1 to "
            "run on CPU cores, or start the nodes with their GPUs (ray start --num-gpus)"
        )
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    return _fit(cpus, asked or 1, Plan(asked or 1, 0, 1, 1), "CPU cores at one each")


def _plan_gpus(gpus: Sequence[int], per_replica: int, asked: int | None) -> Plan:
    room = [count // per_replica for count in gpus]
    if not sum(room):
        raise ConfigError(
            f"--per_proc_gpus (PER_PROC_GPUS) is {per_replica}, but no node has more than "
            f"{max(gpus)} GPUs, and a replica is on one node; use {max(gpus)} or fewer"
        )
    wanted = asked or sum(room)
    what = f"GPUs at {per_replica} each"
    return _fit(room, wanted, Plan(wanted, per_replica, 0, 1), what)


def _fit(room: Sequence[int], wanted: int, found: Plan, what: str) -> Plan:
    if wanted > sum(room):
        raise ConfigError(
            f"--num_replicas (GPUPOOL_NUM_REPLICAS) is {wanted}, but the {what} of "
            f"{len(room)} node(s) have room for {sum(room)}; use that or fewer"
        )
    return Plan(found.num_replicas, found.num_gpus, found.num_cpus, min(max(room), wanted))
