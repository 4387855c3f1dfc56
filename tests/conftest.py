"""Every test starts from an environment without our settings."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ("HF_MODEL_NAME", "PER_PROC_GPUS", "INFER_TYPE", "CUDA_VISIBLE_DEVICES", "PORT")
    for name in list(os.environ):
        if name in ours or name.startswith("GPUPOOL_"):
            monkeypatch.delenv(name)
