"""The Ray that a pool runs on: one of its own, or one that is there (launcher)."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

from gpupool import guardian
from gpupool.errors import ConfigError
from gpupool.layout import make_layout
from gpupool.partition import Slice
from gpupool.ray_pool.names import APP
from gpupool.refusal import one_line
from gpupool.settings import Settings

OBJECT_STORE_BYTES = 100 << 20
"""Requests and answers go past it; by default Ray takes a third of the memory for it."""
PROXY_CALLBACK = "gpupool.ray_pool.door:make_middlewares"
ROOT = Path(__file__).parent.parent.parent
OF_OWN_RAY = {
    # Ray's name for: no node but this one, so that all of its ports are on the loopback.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    # Ray cannot tell whose memory it is, and kills replicas for what others use.
    "RAY_memory_monitor_refresh_ms": "0",
}


@contextlib.contextmanager
def opened(settings: Settings, variables: Mapping[str, str]) -> Iterator[None]:
    """Connected to Ray within it; a Ray of the pool's own ends with it. `variables` are for all
    processes of the pool. ConfigError where there is no such cluster, or it is taken."""
    environment = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": PROXY_CALLBACK, **variables}
    with contextlib.ExitStack() as stack:
        if settings.ray_address is None:
            stack.enter_context(_guarded())
            _start_own(settings, environment)
        else:
            _join(settings.ray_address, environment)
        stack.callback(_leave)
        _refuse_other_applications()
        yield


def node_resources() -> list[dict[str, float]]:
    """Of each node that is there."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _start_own(settings: Settings, environment: dict[str, str]) -> None:
    """Everything of it is this process's child, and ends with it however that ends."""
    slices = make_layout(settings).slices
    # Ray reads them when it is imported.
    os.environ.update(OF_OWN_RAY | _secured(os.environ) | _visible(slices))
    import ray

    cores = len(os.sched_getaffinity(0))
    ray.init(
        address="local",
        num_gpus=sum(len(found.gpus) for found in slices),
        num_cpus=max(cores, settings.num_replicas or 1),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        runtime_env={"env_vars": environment},
        logging_level="warning",
    )


@contextlib.contextmanager
def _guarded() -> Iterator[None]:
    """Should this process be killed within it, its group is: Ray's agents would wait a while for
    what died with it. Not where the group is that of a script which started the pool."""
    guarding = guardian.start_beside() if os.getpgrp() == os.getpid() else None
    try:
        yield
    finally:
        if guarding is not None:
            os.kill(guarding.pid, signal.SIGKILL)  # a pipe's other end is in the group, too


def _leave() -> None:
    import ray

    ray.shutdown()


def _join(address: str, environment: dict[str, str]) -> None:
    import ray

    try:
        ray.init(address=address, runtime_env={"env_vars": environment}, logging_level="warning")
    except Exception as error:
        # No common base: wrong token, another version, no cluster of this machine's, no Python.
        raise ConfigError(
            f"--ray_address (GPUPOOL_RAY_ADDRESS) is {address!r}: {one_line(error)[:500]}"
        ) from None


def _refuse_other_applications() -> None:
    """Serve's proxies are started once for a cluster, with what the first who starts them says."""
    from ray import serve

    there = serve.status()
    if there.proxies or there.applications:
        names = ", ".join(there.applications) or "none"
        raise ConfigError(
            f"this Ray cluster runs Serve already (applications: {names}), so its address and "
            "limits cannot be set any more; end it (serve shutdown), or use another cluster"
            if APP not in there.applications
            else "this Ray cluster runs a gpupool already; end that first"
        )


def _secured(environ: Mapping[str, str]) -> dict[str, str]:
    """With a token that only this process and its children have, unless there is one."""
    if "RAY_AUTH_MODE" in environ:
        return {}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _visible(slices: tuple[Slice, ...]) -> dict[str, str]:
    """So that Ray hands out the GPUs of the slices, and by names that cannot be mistaken."""
    uuids = [gpu.uuid for found in slices for gpu in found.gpus]
    return {"CUDA_VISIBLE_DEVICES": ",".join(uuids)} if uuids else {}


def python_path(environ: Mapping[str, str]) -> dict[str, str]:
    """For replicas on this machine, which may run from a checkout."""
    before = environ.get("PYTHONPATH", "")
    entries = [str(ROOT), *(entry for entry in before.split(":") if entry)]
    return {"PYTHONPATH": ":".join(dict.fromkeys(entries))}
