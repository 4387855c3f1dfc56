"""The machine's GPUs as plain data, read through NVML (master, dispatcher, doctor).

NVML is opened and shut within each call, so that a master that forks later carries nothing
of it into its workers. Imports neither torch nor any engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gpupool.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Gpu:
    """One whole GPU or one MIG device, as NVML saw it at one moment."""

    index: int  # NVML index of the GPU, of the parent for a MIG device
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    numa_node: int | None = None
    cpus: tuple[int, ...] = ()  # cores near the GPU; empty where unknown
    parent_uuid: str | None = None  # set for a MIG device
    fault: str | None = None  # why it must not be used, e.g. "lost", "ECC uncorrected 3"
    processes: tuple[tuple[int, int], ...] = ()  # (pid, bytes) of compute processes

    @property
    def used_bytes(self) -> int:
        """What processes use, without what the driver keeps for itself."""
        return self.total_bytes - self.free_bytes


@dataclass(frozen=True, slots=True)
class Link:
    """How near two GPUs are to each other."""

    num_nvlinks: int  # 0: none; through a switch at least 1
    same_model: bool
    same_numa: bool
    pcie_level: int  # 0 (one board) to 5 (across sockets)

    @property
    def score(self) -> int:
        """Higher is nearer. Each criterion outweighs all later ones together, also when the
        pairs of 16 GPUs (120 of them) are summed up."""
        return (
            self.num_nvlinks * 1_000_000_000
            + self.same_model * 1_000_000
            + self.same_numa * 1_000
            + 5
            - self.pcie_level
        )

    @property
    def label(self) -> str:
        """The words of `nvidia-smi topo -m`."""
        if self.num_nvlinks:
            return f"NV{self.num_nvlinks}"
        return ("INT", "PIX", "PXB", "PHB", "NODE", "SYS")[self.pcie_level]


Links = Mapping[frozenset[str], Link]
"""The link of two GPUs, by the pair of their UUIDs."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """All GPUs of the machine at one moment. A GPU in MIG mode is there as its MIG devices."""

    driver: str
    cuda: str
    gpus: tuple[Gpu, ...]
    links: Links


def read_inventory() -> Inventory | None:
    """What NVML sees; None on a machine without NVIDIA's library.

    A library that is there and fails is a ConfigError: going on without GPUs would put a model
    meant for them on the CPU. Blocks for as long as the driver takes to wake up.
    """
    from gpupool import nvml, topology

    with nvml.session() as opened:
        if not opened:
            return None
        gpus = nvml.list_gpus()
        return Inventory(
            driver=nvml.driver_version(),
            cuda=nvml.cuda_version(),
            gpus=gpus,
            links=topology.list_links(gpus),
        )


def read_gpus(gpus: Iterable[Gpu]) -> dict[str, Gpu]:
    """The same GPUs as they are now, by UUID; what NVML cannot reach any more has a fault."""
    from gpupool import nvml

    with nvml.session() as opened:
        if not opened:
            return {gpu.uuid: nvml.with_fault(gpu, "NVML is gone") for gpu in gpus}
        return {gpu.uuid: nvml.read_again(gpu) for gpu in gpus}


def are_computing(uuids: Iterable[str]) -> bool:
    """Whether one of these computes, or may: a MIG device's driver does not tell."""
    from gpupool import nvml

    try:
        with nvml.session() as opened:
            return opened and any(nvml.may_compute(uuid) for uuid in uuids)
    except ConfigError:
        return True  # Whether a GPU computes is not known while its driver does not answer.


def select_visible(inventory: Inventory, cuda_visible_devices: str | None) -> tuple[Gpu, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, in its order; None means all, "" means none.

    Takes NVML indices, full or unique beginnings of GPU- and MIG- UUIDs. Where CUDA silently
    stops at the first entry it does not know, this raises a ConfigError that names it.
    """
    if cuda_visible_devices is None:
        return inventory.gpus
    if cuda_visible_devices.strip() in ("", "-1"):
        return ()
    selected: list[Gpu] = []
    for entry in cuda_visible_devices.split(","):
        for gpu in _find(inventory, entry.strip(), cuda_visible_devices):
            if gpu in selected:
                raise ConfigError(
                    f"CUDA_VISIBLE_DEVICES={cuda_visible_devices!r} names GPU {gpu.index} "
                    f"({gpu.uuid}) twice; name each GPU once"
                )
            selected.append(gpu)
    return tuple(selected)


def _find(inventory: Inventory, entry: str, asked: str) -> list[Gpu]:
    """The GPUs one entry stands for: one, or all MIG devices of a GPU in MIG mode."""
    if entry.isascii() and entry.isdigit():
        found = [gpu for gpu in inventory.gpus if gpu.index == int(entry)]
    else:
        found = _find_uuid(inventory.gpus, entry)
    if not found:
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES={asked!r}: there is no GPU {entry!r}; there is "
            f"{_list_gpus(inventory.gpus)}. Use an index, a GPU- UUID or a MIG- id from "
            "`nvidia-smi -L`"
        )
    devices = {gpu.parent_uuid or gpu.uuid for gpu in found}
    if len(devices) > 1 or (entry.startswith("MIG-") and len(found) > 1):
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES={asked!r}: {entry!r} is the beginning of "
            f"{len(found)} UUIDs ({', '.join(gpu.uuid for gpu in found)}); write more of it"
        )
    return found


def _find_uuid(gpus: tuple[Gpu, ...], entry: str) -> list[Gpu]:
    wanted = entry.lower()
    if not wanted.startswith(("gpu-", "mig-")):
        return []
    exact = [gpu for gpu in gpus if gpu.uuid.lower() == wanted]
    return exact or [
        gpu
        for gpu in gpus
        if gpu.uuid.lower().startswith(wanted)
        or (gpu.parent_uuid is not None and gpu.parent_uuid.lower().startswith(wanted))
    ]


def _list_gpus(gpus: tuple[Gpu, ...]) -> str:
    return ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus) or "none at all"
