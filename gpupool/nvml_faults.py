"""What NVML says is wrong with a GPU (master and workers).

pynvml is imported inside functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class LostGpu(Exception):
    """The GPU does not answer any more; the message is the fault."""


def ask(function: Callable[..., Any], *arguments: Any, default: Any) -> Any:
    """The call's answer, or the default where this GPU or driver has none to give."""
    import pynvml

    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        if error.value in (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED):
            raise LostGpu(fault_text(error)) from None
        return default


def fault_of(uuid: str) -> str | None:
    """Why a whole GPU must not be used any more, or None. An answer that says neither is an
    NVMLError."""
    import pynvml

    try:
        return health_of(pynvml.nvmlDeviceGetHandleByUUID(uuid))
    except LostGpu as error:
        return str(error)
    except pynvml.NVMLError as error:
        if error.value in (
            pynvml.NVML_ERROR_GPU_IS_LOST,
            pynvml.NVML_ERROR_NOT_FOUND,
            pynvml.NVML_ERROR_RESET_REQUIRED,
        ):
            return fault_text(error)
        raise


def health_of(handle: Any) -> str | None:
    """Why the GPU must not be used, or None; raises LostGpu."""
    import pynvml

    if ask(pynvml.nvmlDeviceGetComputeMode, handle, default=0) == (
        pynvml.NVML_COMPUTEMODE_PROHIBITED
    ):
        return "compute mode is Prohibited (nvidia-smi -c 0 allows it)"
    uncorrected = ask(
        pynvml.nvmlDeviceGetTotalEccErrors,
        handle,
        pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
        pynvml.NVML_VOLATILE_ECC,
        default=0,
    )
    if uncorrected:
        return f"ECC uncorrected {uncorrected}"
    remapped = ask(pynvml.nvmlDeviceGetRemappedRows, handle, default=(0, 0, 0, 0))
    if remapped[3]:
        return "row remapping failed (replace the GPU)"
    if remapped[2]:
        return "row remapping pending (reset the GPU)"
    if ask(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, handle, default=0):
        return "page retirement pending (reset the GPU)"
    return None


def fault_text(error: Exception) -> str:
    """An NVMLError in the words of an operator."""
    import pynvml

    value = getattr(error, "value", None)
    if value in (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_NOT_FOUND):
        return "lost (fell off the bus)"
    if value == pynvml.NVML_ERROR_RESET_REQUIRED:
        return "needs a reset"
    return str(error)
