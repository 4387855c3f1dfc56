"""NVML calls -> Gpu values (master before its forks; workers after theirs).

Only gpupool.gpus, gpupool.topology and gpupool.meter use it. pynvml is imported inside functions.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from gpupool.errors import ConfigError
from gpupool.gpus import Gpu
from gpupool.nvml_faults import LostGpu, ask, fault_text, health_of
from gpupool.vitals import GpuUse

LIBRARY = "libnvidia-ml.so.1"
NO_GPU = "To run without GPUs on purpose, set CUDA_VISIBLE_DEVICES=''."
REMEDIES = {
    4: "Give this user access to /dev/nvidia*.",
    9: "Load the driver (modprobe nvidia), or start the container with its GPUs (--gpus all).",
    15: "Reset or replace the GPU that fell off the bus; a reboot is the surest.",
    18: "The driver was updated under a running kernel: reboot, or reload the nvidia modules.",
}


@contextmanager
def session() -> Iterator[bool]:
    """NVML open for the block; yields False where the machine has no NVML at all."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND and _is_absent():
            yield False
            return
        remedy = REMEDIES.get(error.value, "`nvidia-smi` should show the same error.")
        raise ConfigError(
            f"the NVIDIA driver does not answer: NVML says {str(error)!r}. {remedy} {NO_GPU}"
        ) from None
    try:
        yield True
    finally:
        pynvml.nvmlShutdown()


def _is_absent() -> bool:
    """Whether the library is really missing; pynvml says so of a broken one too."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        if str(error).startswith(f"{LIBRARY}: cannot open shared object file: No such file"):
            return True
        raise ConfigError(
            f"{LIBRARY} is there but cannot be loaded: {error}. Reinstall the driver's "
            f"libraries. {NO_GPU}"
        ) from None
    return False


def driver_version() -> str:
    """Such as 580.95.05."""
    import pynvml

    return str(pynvml.nvmlSystemGetDriverVersion())


def cuda_version() -> str:
    """The newest CUDA that the driver can run, such as 13.0."""
    import pynvml

    number = int(ask(pynvml.nvmlSystemGetCudaDriverVersion, default=0))
    return f"{number // 1000}.{number % 1000 // 10}"


def list_gpus() -> tuple[Gpu, ...]:
    """All GPUs in NVML's order, those in MIG mode replaced by their MIG devices."""
    import pynvml

    found: list[Gpu] = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            found.extend(_read_device(index, handle))
        except (LostGpu, pynvml.NVMLError) as error:
            fault = fault_text(error)
            found.append(Gpu(index, f"unreachable-{index}", "unknown", 0, 0, fault=fault))
    return tuple(found)


def read_again(gpu: Gpu) -> Gpu:
    """The GPU's memory, processes and faults of now."""
    import pynvml

    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
        parent = handle
        if gpu.parent_uuid is not None:
            parent = pynvml.nvmlDeviceGetHandleByUUID(gpu.parent_uuid)
        total, free = _memory(handle)
        fault, processes = health_of(parent), _processes(handle)
    except (LostGpu, pynvml.NVMLError) as error:
        return with_fault(gpu, fault_text(error))
    return replace(gpu, total_bytes=total, free_bytes=free, fault=fault, processes=processes)


def read_use(gpu: Gpu) -> GpuUse:
    """What is used of the GPU now; all unknown if it does not answer."""
    import pynvml

    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
        total, free = _memory(handle)
        rates = ask(pynvml.nvmlDeviceGetUtilizationRates, handle, default=None)
        celsius = ask(
            pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU, default=None
        )
        milliwatts = ask(pynvml.nvmlDeviceGetPowerUsage, handle, default=None)
    except (LostGpu, pynvml.NVMLError):
        return GpuUse()
    return GpuUse(
        used_bytes=total - free if total else None,
        total_bytes=total or None,
        utilization=None if rates is None else rates.gpu / 100,
        temperature_c=celsius,
        power_w=None if milliwatts is None else milliwatts / 1000,
    )


def ask_uuid(handle: Any) -> str | None:
    """The UUID behind a handle, None if the driver does not know it any more."""
    import pynvml

    try:
        return str(pynvml.nvmlDeviceGetUUID(handle))
    except pynvml.NVMLError:
        return None


def may_compute(uuid: str) -> bool:
    """Whether a kernel ran within about the last second; True where the driver cannot say."""
    import pynvml

    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        used = ask(pynvml.nvmlDeviceGetUtilizationRates, handle, default=None)
    except (LostGpu, pynvml.NVMLError):
        return False  # A GPU that is gone computes nothing.
    return used is None or used.gpu > 0


def with_fault(gpu: Gpu, fault: str) -> Gpu:
    """The GPU marked as not to be used."""
    return replace(gpu, fault=fault)


def _read_device(index: int, handle: Any) -> list[Gpu]:
    import pynvml

    whole = _read_whole(index, handle)
    if ask(pynvml.nvmlDeviceGetMigMode, handle, default=(0, 0))[0] != 1:
        return [whole]
    devices = []
    for number in range(ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle, default=0)):
        device = ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number, default=None)
        if device is None:
            continue
        total, free = _memory(device)
        devices.append(
            replace(
                whole,
                uuid=str(pynvml.nvmlDeviceGetUUID(device)),
                name=str(ask(pynvml.nvmlDeviceGetName, device, default=f"{whole.name} MIG")),
                total_bytes=total,
                free_bytes=free,
                parent_uuid=whole.uuid,
                processes=_processes(device),
            )
        )
    if not devices:
        return [with_fault(whole, "MIG mode is on and no MIG device is created")]
    return devices


def _read_whole(index: int, handle: Any) -> Gpu:
    import pynvml

    total, free = _memory(handle)
    return Gpu(
        index=index,
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        name=str(ask(pynvml.nvmlDeviceGetName, handle, default="unknown")),
        total_bytes=total,
        free_bytes=free,
        numa_node=_numa_node(handle),
        cpus=_near_cpus(handle),
        fault=health_of(handle),
        processes=_processes(handle),
    )


def _memory(handle: Any) -> tuple[int, int]:
    """(total, free) bytes as CUDA has them: without what the driver keeps for itself, which only
    the second version tells apart (an H100 of 81559 MiB has 551 of them)."""
    import pynvml

    info = ask(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2, default=None)
    if info is not None:
        total = int(info.total) - int(info.reserved)
        return total, total - int(info.used)
    info = ask(pynvml.nvmlDeviceGetMemoryInfo, handle, default=None)
    if info is None:  # devices that share the machine's memory have none of their own
        return 0, 0
    return int(info.total), int(info.total) - int(info.used)


def _processes(handle: Any) -> tuple[tuple[int, int], ...]:
    import pynvml

    running = ask(pynvml.nvmlDeviceGetComputeRunningProcesses, handle, default=())
    return tuple((int(p.pid), int(p.usedGpuMemory or 0)) for p in running)


def _near_cpus(handle: Any) -> tuple[int, ...]:
    import pynvml

    words = ask(pynvml.nvmlDeviceGetCpuAffinity, handle, 32, default=())
    return tuple(_bits(words))


def _numa_node(handle: Any) -> int | None:
    """The node of the cores near the GPU. nvmlDeviceGetNumaNodeId names the node of the GPU's
    own memory instead, where it has one, so it comes second."""
    import pynvml

    words = ask(
        pynvml.nvmlDeviceGetMemoryAffinity,
        handle,
        16,
        pynvml.NVML_AFFINITY_SCOPE_NODE,
        default=(),
    )
    for node in _bits(words):
        return node
    node = ask(pynvml.nvmlDeviceGetNumaNodeId, handle, default=None)
    return node if node is not None and node >= 0 else None


def _bits(words: Any) -> Iterator[int]:
    for position, word in enumerate(words):
        for bit in range(64):
            if word >> bit & 1:
                yield position * 64 + bit
