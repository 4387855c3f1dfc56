"""What can be refused before Ray is started or asked (preflight process). Imports no Ray."""

from __future__ import annotations

import importlib.util
import socket

from gpupool.errors import ConfigError
from gpupool.extras import install_line
from gpupool.ray_pool.refusals import refuse_meaningless
from gpupool.settings import Settings

CONNECT_TIMEOUT_S = 5.0


def check(settings: Settings) -> None:
    """ConfigError for the first thing that cannot be, with or without Ray."""
    refuse_meaningless(settings)
    if settings.launcher == "ray":
        _refuse_without_ray()
        _refuse_silent_head(settings.ray_address)


def _refuse_without_ray() -> None:
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("ray.serve") is None:
        raise ConfigError(
            "--launcher (GPUPOOL_LAUNCHER) is 'ray', which is not installed here; "
            f"{install_line('ray')}"
        )


def _refuse_silent_head(address: str | None) -> None:
    """A connection to nobody would take Ray a minute to give up."""
    if address in (None, "auto"):
        return
    assert address is not None
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "nobody answers"
        raise ConfigError(
            f"--ray_address (GPUPOOL_RAY_ADDRESS) is {address!r}: {reason}; is a cluster's head "
            "there (ray start --head), and may this machine reach it?"
        ) from None
