"""Where an event loop spends its time, if the environment asks for it: `Profile` watches it (a
worker of the pool, or the process of `paced_server`), `read_parts` tells (driver)."""

from __future__ import annotations

import cProfile
import os
import pstats
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VARIABLE = "BENCHMARK_PROFILE"
"""Names a file for what was found."""

PARTS = {
    "the pool": ("/gpupool/", "/gunicorn/", "/gunicorn_conf.py"),
    "uvicorn": ("/uvicorn/",),
    "vLLM's application": ("/vllm/", "/pydantic/", "/pydantic_core/"),
    "FastAPI, Starlette, instrumentation": (
        "/fastapi/", "/starlette/", "/anyio/", "/prometheus_client/",
        "/prometheus_fastapi_instrumentator/",
    ),
    "the scripted engine": ("/benchmarks/",),
}  # fmt: skip
OTHER = "anything else"


class Profile:
    """Of one stretch of time after the other; the file tells of the last. To be used on the event
    loop's thread. Without the variable it does nothing."""

    def __init__(self) -> None:
        self._path = os.environ.get(VARIABLE)
        self._running: cProfile.Profile | None = None

    def start(self) -> None:
        if self._path:
            self._running = cProfile.Profile()
            self._running.enable()

    def stop(self) -> None:
        if self._path and self._running is not None:
            self._running.disable()
            self._running.dump_stats(self._path)
            self._running = None


@contextmanager
def profiling(path: Path) -> Iterator[None]:
    """What is started within it watches itself."""
    os.environ[VARIABLE] = str(path)
    try:
        yield
    finally:
        del os.environ[VARIABLE]


def read_parts(path: Path) -> dict[str, float]:
    """Seconds by PARTS and OTHER. What a built-in function took is its caller's."""
    stats: Any = pstats.Stats(str(path))
    seconds = Counter[str]()
    for (file, _, _), (_, _, own_s, _, callers) in stats.stats.items():
        if file != "~":
            seconds[part_of(file)] += own_s
            continue
        for (caller, _, _), (_, _, own_by_caller_s, _) in callers.items():
            seconds[part_of(caller)] += own_by_caller_s
    return {part: round(seconds[part], 6) for part in (*PARTS, OTHER)}


def part_of(file: str) -> str:
    """By the last of the folders that says it: this project may lie in a folder of any name."""
    found = [(file.rfind(folder), part) for part, folders in PARTS.items() for folder in folders]
    place, part = max(found)
    return part if place >= 0 else OTHER
