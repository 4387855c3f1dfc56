"""How many replicas a cluster has room for (pure; launcher)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gpupool.errors import ConfigError
from gpupool.setting_types import AUTO_REPLICAS
from gpupool.settings import Settings


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many replicas, as asked for."""

    count: int | None = None
    """None: as many as the GPUs make; AUTO_REPLICAS: as many as there are requests for."""
    least: int | None = None
    most: int | None = None

    @property
    def is_auto(self) -> bool:
        """Whether the number follows the load."""
        return self.count == AUTO_REPLICAS

    @classmethod
    def of_settings(cls, settings: Settings) -> Wanted:
        """What the settings say."""
        return cls(settings.num_replicas, settings.min_replicas, settings.max_replicas)


@dataclass(frozen=True, slots=True)
class Plan:
    """The replicas of a pool, and what Ray reserves for each."""

    num_replicas: int
    """All of them; where the number follows the load, the most."""
    num_gpus: int
    num_cpus: int
    per_node: int
    """As many as one node may get: they share its cores out."""
    least: int | None = None
    """How many there are at least where the number follows the load; None: it does not."""

    @property
    def actor_options(self) -> dict[str, int]:
        """Both are always said: a replica that asks for a GPU alone needs a CPU too, by Ray's
        defaults, and waits for ever without a word where there are fewer CPUs than GPUs."""
        return {"num_gpus": self.num_gpus, "num_cpus": self.num_cpus}


def plan(nodes: Sequence[Mapping[str, float]], per_replica: int, wanted: Wanted) -> Plan:
    """`nodes` are the resources of each. ConfigError where so many replicas would never start."""
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    if any(gpus):
        room = [count // per_replica for count in gpus]
        if not sum(room):
            raise ConfigError(
                f"--per_proc_gpus (PER_PROC_GPUS) is {per_replica}, but no node has more than "
                f"{max(gpus)} GPUs, and a replica is on one node; use {max(gpus)} or fewer"
            )
        what = f"GPUs at {per_replica} each"
        return _fit(room, wanted, sum(room), Plan(0, per_replica, 0, 1), what)
    if per_replica > 1:
        raise ConfigError(
            f"--per_proc_gpus (PER_PROC_GPUS) is {per_replica}, but Ray knows of no GPU. Use 1 to "
            "run on CPU cores, or start the nodes with their GPUs (ray start --num-gpus)"
        )
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    return _fit(cpus, wanted, 1, Plan(0, 0, 1, 1), "CPU cores at one each")


def _fit(room: Sequence[int], wanted: Wanted, usual: int, found: Plan, what: str) -> Plan:
    """A cluster may grow, so the most may be more than it has room for now."""
    if wanted.is_auto:
        flag, least = "min_replicas", wanted.least or 1
        most = max(wanted.most or sum(room), least)
    else:
        flag, least = "num_replicas", wanted.count or usual
        most = least
    if least > sum(room):
        raise ConfigError(
            f"--{flag} (GPUPOOL_{flag.upper()}) is {least}, but the {what} of "
            f"{len(room)} node(s) have room for {sum(room)}; use that or fewer"
        )
    return replace(
        found,
        num_replicas=most,
        per_node=min(max(room), most),
        least=least if wanted.is_auto else None,
    )
