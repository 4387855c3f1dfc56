"""What a load has shown of the overhead: found again by the same load only, never in the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpupool import calibration, kept
from gpupool.calibration import measured_overhead, measured_overheads, remember
from gpupool.engines.base import ModelInfo
from gpupool.gpus import Gpu
from gpupool.partition import Slice
from gpupool.planner.fit import GIB, MIB, Ask, Card, fit
from gpupool.planner.machine import of_gpus
from gpupool.planner.option import Machine
from gpupool.settings import Settings
from tests.plan_models import PUBLISHED, model

NAME = "Qwen/Qwen2.5-7B-Instruct"
A10 = tuple(Gpu(i, f"GPU-{i}", "NVIDIA A10", 23028 * MIB, 23028 * MIB) for i in range(2))
INFO = ModelInfo("m", 32768, 152064, 256, kv_cache_tokens=80_000)


@pytest.fixture(name="folder", autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(PUBLISHED[NAME].config))
    return folder


def load(folder: Path, *engine_args: str, info: ModelInfo = INFO, num_gpus: int = 1) -> None:
    settings = Settings(model_name=str(folder), infer_type="vllm", engine_args=engine_args)
    remember(settings, Slice(0, A10[:num_gpus], ()), info)


def known(folder: Path, machine: Machine | None = None, **ask: Any) -> dict[int, int]:
    return measured_overheads(str(folder), machine or of_gpus(list(A10)), replace(Ask(), **ask))


def test_what_is_neither_weights_nor_cache_is_the_overhead() -> None:
    card = Card("NVIDIA A10", 23028 * MIB, 23028 * MIB)
    planned = fit(model("Qwen2.5-7B-Instruct"), card, 1, Ask())
    as_planned = measured_overhead(planned, planned.num_tokens, planned.max_model_len)
    # vLLM gives whole blocks to its cache.
    assert as_planned == pytest.approx(planned.estimated.num_bytes, abs=16 * 57344)
    fewer = measured_overhead(planned, planned.num_tokens - 10_000, planned.max_model_len)
    assert fewer - as_planned == pytest.approx(10_000 * 57344, rel=0.001)


def test_a_load_corrects_the_next_plan(folder: Path) -> None:
    assert known(folder) == {}
    load(folder)
    assert known(folder) == {1: pytest.approx(2.2 * GIB, rel=0.05)}


def test_the_last_load_counts(folder: Path) -> None:
    load(folder)
    before = known(folder)[1]
    load(folder, info=replace(INFO, kv_cache_tokens=90_000))
    assert known(folder)[1] < before


@pytest.mark.parametrize(
    "ask",
    [
        {"max_num_seqs": 8},
        {"max_num_batched_tokens": 512},
        {"is_eager": True},
        {"dtype": "float16"},
    ],
    ids=str,
)
def test_another_load_has_its_own_overhead(folder: Path, ask: dict[str, Any]) -> None:
    load(folder)
    assert known(folder, **ask) == {}


def test_another_gpu_has_its_own_overhead(folder: Path) -> None:
    load(folder)
    assert known(folder, of_gpus([replace(A10[0], name="NVIDIA L4")])) == {}


def test_what_vllm_chooses_itself_is_the_same_load(folder: Path) -> None:
    load(folder, "--max-num-seqs", "256")
    assert known(folder) != {}


@pytest.mark.parametrize(
    ("arguments", "info"),
    [
        ((), replace(INFO, kv_cache_tokens=None)),
        ((), replace(INFO, kv_cache_tokens=10**9)),
        (("--cpu-offload-gb", "4"), INFO),
        (("--quantization", "fp8"), INFO),
    ],
    ids=["not told", "cannot be", "unclear", "made smaller"],
)
def test_what_says_nothing_is_not_kept(
    folder: Path, arguments: tuple[str, ...], info: ModelInfo
) -> None:
    load(folder, *arguments, info=info)
    assert known(folder) == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"bytes": 3}'], ids=repr)
def test_a_broken_file_is_no_measurement(folder: Path, content: bytes) -> None:
    load(folder)
    key = calibration.key_of(str(folder), of_gpus(list(A10)), 1, Ask())
    kept.path_of(calibration.KIND, key).write_bytes(content)
    assert known(folder) == {}


def test_a_model_that_is_gone_stops_no_load(folder: Path) -> None:
    (folder / "config.json").unlink()
    load(folder)
    assert known(folder) == {}
