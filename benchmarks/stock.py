"""The same application and engine under stock gunicorn, whose gthread workers share one listener
and know nothing of each other. `start_stock` runs in the driver, `create_app` in each worker.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.contender import Start
from benchmarks.server import running
from benchmarks.site import MODEL, Site, StepModel
from tests.pool import free_port

if TYPE_CHECKING:
    from flask import Flask

THREADS = 256  # as many as a worker of the pool has
KEEPALIVE_S = 75


def create_app() -> Flask:
    """Loads the engine, then serves: no admission, no siblings."""
    from gpupool import app, settings
    from gpupool.partition import Slice
    from plugin_url_m import boot

    stock = app.create_app(boot)
    cores = tuple(sorted(os.sched_getaffinity(0)))
    stock.extensions["gpupool"].load(Slice(0, (), cores), settings.read_settings())
    return stock


def start_stock(num_workers: int, model: StepModel) -> Start[Site]:
    """One gunicorn with so many workers."""

    @contextmanager
    def start(folder: Path, cores: tuple[int, ...]) -> Iterator[Site]:
        with serve_stock(folder, cores, num_workers, model) as (port, list_pids):
            yield Site(f"http://127.0.0.1:{port}", list_pids)

    return start


@contextmanager
def serve_stock(
    folder: Path, cores: tuple[int, ...], num_workers: int, model: StepModel
) -> Iterator[tuple[int, Callable[[], list[int]]]]:
    """The port, and what lists the processes."""
    port = free_port()
    command = [
        sys.executable, "-m", "gunicorn", "--workers", str(num_workers),
        "--worker-class", "gthread", "--threads", str(THREADS), "--timeout", "600",
        "--keep-alive", str(KEEPALIVE_S), "--worker-connections", "10000",
        "--bind", f"127.0.0.1:{port}", "--no-control-socket", "benchmarks.stock:create_app()",
    ]  # fmt: skip
    env = {
        "HF_MODEL_NAME": MODEL,
        "INFER_TYPE": model.infer_type,
        "GPUPOOL_ENGINE_ARGS": " ".join(model.flags),
    }
    with running(
        command,
        env=env,
        cores=cores,
        ready_url=f"http://127.0.0.1:{port}/readyz",
        log_path=folder / f"stock-{port}.log",
    ) as list_pids:
        yield port, list_pids
