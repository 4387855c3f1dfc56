"""Every test starts from an environment without our settings."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How tests are shared out when they run side by side."""
    from tests.scheduling import EngineScheduling

    return EngineScheduling(config, log)


CORES = sorted(os.sched_getaffinity(0))
WORKER = os.environ.get("PYTEST_XDIST_WORKER")
OWN_CORE = CORES[int(WORKER.removeprefix("gw")) % len(CORES)] if WORKER else None

if OWN_CORE is not None:
    # OpenMP counts the cores when it is loaded, which may be while tests are collected.
    os.sched_setaffinity(0, [OWN_CORE])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Side by side, what computes a model gets a core of its own, and all it starts with it: the
    threads of two engines on the same cores wait for each other most of the time."""
    if OWN_CORE is not None:
        os.sched_setaffinity(0, [OWN_CORE] if item.get_closest_marker("model") else CORES)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Alone, the same order."""
    from tests.scheduling import order

    order(items)


@pytest.fixture(autouse=True)
def _loggers_as_python_makes_them() -> None:
    """gunicorn's set-up, and engines' when they are imported, hide lines from tests that come
    later."""
    logging.disable(logging.NOTSET)
    logging.getLogger().setLevel(logging.WARNING)
    for name in ["gpupool", *logging.Logger.manager.loggerDict]:
        if name.partition(".")[0] == "gpupool":
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate, logger.disabled = [], True, False
            logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ("HF_MODEL_NAME", "PER_PROC_GPUS", "INFER_TYPE", "CUDA_VISIBLE_DEVICES", "PORT")
    for name in list(os.environ):
        if name in ours or name.startswith("GPUPOOL_"):
            monkeypatch.delenv(name)
