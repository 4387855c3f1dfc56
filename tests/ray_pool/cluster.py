"""Pools on a real Ray, in a network of their own: some of Ray's ports are open to everybody."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from gpupool.extras import install_line
from tests.pool import Pool

CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
START_S = 90.0
PORT = 5002


def require_ray() -> None:
    """Tests that need it fail without it."""
    if importlib.util.find_spec("ray") is None:
        raise AssertionError(f"ray is not installed; {install_line('ray')}")


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """What this thread and its children do within it reaches nothing but each other. Needs root."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    _check(libc.unshare(CLONE_NEWNET))
    try:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield
    finally:
        _check(libc.setns(before, CLONE_NEWNET))
        os.close(before)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"a network of one's own needs root: {os.strerror(number)}")


def environment() -> dict[str, str]:
    """The Python that runs the tests is the pool's."""
    folder = Path(sys.prefix) / "bin"
    return {"VIRTUAL_ENV": sys.prefix, "PATH": f"{folder}:{os.environ['PATH']}"}


def ray_pool(tmp_path: Path, *flags: str, env: dict[str, str] | None = None) -> Pool:
    """To be entered within `own_network`. Ray takes any of the ports that are free, this not."""
    require_ray()
    more = environment() | (env or {})
    return Pool(tmp_path, "--launcher", "ray", *flags, env=more, port=PORT)


def replica_pids(pool: Pool, **headers: str) -> list[int]:
    """By rank."""
    return [worker["pid"] for worker in pool.workers(**headers)]
