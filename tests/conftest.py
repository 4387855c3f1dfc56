"""Every test starts from an environment without our settings."""

from __future__ import annotations

import os

import pytest

SHARING = {"test_openai_vllm": "vllm"}  # whose tests are not parametrized by engine


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side run whole files, but all that share an engine's pool run one after the other."""
    for item in items:
        group = item.path.stem
        if isinstance(item, pytest.Function) and "shared_pool" in item.fixturenames:
            given = item.callspec.params if hasattr(item, "callspec") else {}
            group = given.get("engine") or given.get("pool") or SHARING[group]
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ("HF_MODEL_NAME", "PER_PROC_GPUS", "INFER_TYPE", "CUDA_VISIBLE_DEVICES", "PORT")
    for name in list(os.environ):
        if name in ours or name.startswith("GPUPOOL_"):
            monkeypatch.delenv(name)
