"""The machine's GPUs as plain data, read through NVML (master, dispatcher, doctor)."""

from __future__ import annotations

from dataclasses import dataclass


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
