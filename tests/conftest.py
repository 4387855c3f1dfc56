"""Every test starts from an environment without our settings."""

from __future__ import annotations

import os
from typing import Any

import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How tests are shared out when they run side by side."""
    from tests.scheduling import EngineScheduling

    return EngineScheduling(config, log)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ("HF_MODEL_NAME", "PER_PROC_GPUS", "INFER_TYPE", "CUDA_VISIBLE_DEVICES", "PORT")
    for name in list(os.environ):
        if name in ours or name.startswith("GPUPOOL_"):
            monkeypatch.delenv(name)
