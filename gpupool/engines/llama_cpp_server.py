"""llama.cpp's own server in a child process of the worker: `python -m` this module.

It reads its one line of settings from stdin, so that the secret is in no command line and no
environment, and ends when stdin does: the worker holds the other end. A process of its own
because loading holds the interpreter's lock, and because a failed assertion of llama.cpp ends
its whole process.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Mapping
from enum import Enum
from typing import Any

PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
EXIT_NO_MODEL = 3


def main() -> None:
    """Load the model and serve until the worker is gone."""
    die_with_worker()
    settings = json.loads(sys.stdin.readline())
    from xllamacpp import CommonParams, Server

    if settings["num_gpus"]:
        refuse_missing_gpus(settings["num_gpus"])
    params = CommonParams()
    params.model.path = settings["model"]
    params.hostnames = [settings["socket"]]
    params.api_keys = [settings["secret"]]
    apply_params(params, settings["params"])
    try:
        server = Server(params)
    except RuntimeError:
        os._exit(EXIT_NO_MODEL)  # The reason is in its log.
    sys.stdin.read()
    # Not sys.exit: taking the server down has crashed, and nothing is lost without it.
    os._exit(0 if server else 1)


def die_with_worker() -> None:
    """Whatever ends the worker ends this process; what only wants to stop the pool does not,
    as requests that run may finish."""
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(stop, signal.SIG_IGN)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NAME, b"gpupool-llama", 0, 0, 0)
    # The end of stdin tells it too, but nothing reads that while the model loads.
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def refuse_missing_gpus(num_gpus: int) -> None:
    """A model for GPUs never runs on the CPU unnoticed."""
    from xllamacpp import get_device_info

    names = [device["type"].name for device in get_device_info()]
    found = sum(name.endswith("GPU") for name in names)
    if found < num_gpus:
        sys.stderr.write(
            f"0 E the slice has {num_gpus} GPUs and this build of xllamacpp finds {found}; install "
            "its CUDA wheel (xllamacpp's README has the index), or run on the CPU with "
            "CUDA_VISIBLE_DEVICES=''\n"
        )
        sys.stderr.flush()
        os._exit(EXIT_NO_MODEL)


def apply_params(params: Any, values: Mapping[str, Any]) -> None:
    """Set attributes by their paths; an enum's member is given by name."""
    for path, value in values.items():
        *owners, name = path.split(".")
        owner = params
        for part in owners:
            owner = getattr(owner, part)
        setattr(owner, name, _convert(name, getattr(owner, name), value))


def _convert(name: str, current: Any, value: Any) -> Any:
    if isinstance(current, Enum):
        return type(current)[value]
    if name == "tensor_split":
        return value + [0.0] * (len(current) - len(value))
    if name == "lora_adapters":
        return [_adapter(path, scale) for path, scale in value]
    return value


def _adapter(path: str, scale: float) -> Any:
    from xllamacpp import CommonAdapterLoraInfo

    found = CommonAdapterLoraInfo()
    found.path, found.scale = path, scale
    return found


if __name__ == "__main__":
    main()
