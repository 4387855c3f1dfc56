"""What a pool makes of the machine it finds: slices, spares, and what cannot be (master).

Runs before any fork. Asks NVML once and leaves it shut.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gpupool import lockdir
from gpupool.errors import ConfigError
from gpupool.gpus import Gpu, Inventory, read_inventory, select_visible
from gpupool.partition import Partition, Slice, cut, cut_cpus
from gpupool.setting_types import AUTO_GPUS, HOSTED
from gpupool.settings import Settings


@dataclass(frozen=True, slots=True)
class Layout:
    """What the master found and decided."""

    slices: tuple[Slice, ...]
    spares: tuple[Gpu, ...] = ()
    faulty: tuple[Gpu, ...] = ()
    inventory: Inventory | None = None
    lock_dir: Path | None = None  # None: a pool without GPUs has nothing to lock


def make_layout(settings: Settings) -> Layout:
    """What GPUDispatcher.for_settings decides, without a pool."""
    if settings.per_proc_gpus == AUTO_GPUS:
        raise ConfigError(
            "--per_proc_gpus (PER_PROC_GPUS) is auto, which start_gunicorn.sh makes a number; "
            "give one here, or see `gpupool plan`"
        )
    if settings.infer_type == HOSTED:
        return _layout_of_hosted(settings)
    # Who hides all GPUs may do so because the driver is broken: then it is not even asked.
    is_hidden = settings.cuda_visible_devices in ("", "-1")
    inventory = None if is_hidden else read_inventory()
    if inventory is None and not is_hidden and settings.cuda_visible_devices is not None:
        raise ConfigError(
            "--cuda_visible_devices (CUDA_VISIBLE_DEVICES) is "
            f"{settings.cuda_visible_devices!r}, but there is no NVIDIA driver library here "
            "(libnvidia-ml.so.1). Install the driver, start the container with its GPUs, or give "
            "'' to run on CPU cores"
        )
    visible = select_visible(inventory, settings.cuda_visible_devices) if inventory else ()
    if inventory is None or not visible:
        return _layout_of_cpus(settings)
    partition = cut(visible, inventory.links, settings.per_proc_gpus)
    _refuse_impossible(settings, partition, visible)
    num_workers = settings.workers or len(partition.slices)
    unused = tuple(gpu for rest in partition.slices[num_workers:] for gpu in rest.gpus)
    lock_dir = lockdir.open_lock_dir(settings.lock_dir)
    lockdir.prepare(lock_dir, [gpu for gpu in visible if gpu.fault is None])
    return Layout(
        slices=partition.slices[:num_workers],
        spares=unused + partition.spares,
        faulty=partition.faulty,
        inventory=inventory,
        lock_dir=lock_dir,
    )


def _visible(settings: Settings) -> str:
    asked = settings.cuda_visible_devices
    return "CUDA_VISIBLE_DEVICES is not set" if asked is None else f"CUDA_VISIBLE_DEVICES={asked!r}"


def _layout_of_cpus(settings: Settings) -> Layout:
    if settings.per_proc_gpus > 1:
        raise ConfigError(
            f"--per_proc_gpus (PER_PROC_GPUS) is {settings.per_proc_gpus}, but there is no GPU "
            f"to use here ({_visible(settings)}). Use 1 to run on the CPU, or make GPUs visible"
        )
    return Layout(slices=cut_cpus(os.sched_getaffinity(0), settings.workers or 1))


def _layout_of_hosted(settings: Settings) -> Layout:
    """A hosted model takes no GPU, whatever is here: the driver is not even asked."""
    if settings.per_proc_gpus > 1:
        raise ConfigError(
            f"--per_proc_gpus (PER_PROC_GPUS) is {settings.per_proc_gpus}, but a hosted model "
            "(--infer_type saas) takes no GPU; leave it out"
        )
    return Layout(slices=cut_cpus(os.sched_getaffinity(0), settings.workers or 1))


def _refuse_impossible(settings: Settings, partition: Partition, visible: tuple[Gpu, ...]) -> None:
    asked, num_healthy = settings.per_proc_gpus, len(visible) - len(partition.faulty)
    if asked > 1 and any(gpu.parent_uuid for gpu in visible):
        raise ConfigError(
            f"--per_proc_gpus (PER_PROC_GPUS) is {asked}, but a process can use only one MIG "
            "device. Use 1, or switch MIG mode off (nvidia-smi -mig 0)"
        )
    if asked > num_healthy:
        faults = "".join(f"; GPU {gpu.index} is left out: {gpu.fault}" for gpu in partition.faulty)
        fix = f"Use {num_healthy} or fewer, or make" if num_healthy else "Make"
        raise ConfigError(
            f"--per_proc_gpus (PER_PROC_GPUS) is {asked}, but {num_healthy} of {len(visible)} "
            f"visible GPUs can be used ({_visible(settings)}{faults}). {fix} more GPUs visible"
        )
    if settings.workers and settings.workers > len(partition.slices):
        raise ConfigError(
            f"--workers (GPUPOOL_WORKERS) is {settings.workers}, but {num_healthy} GPUs at "
            f"{asked} each make {len(partition.slices)} slices. Use {len(partition.slices)} or "
            "fewer, or fewer GPUs per worker"
        )
