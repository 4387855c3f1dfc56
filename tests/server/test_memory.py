"""start_gunicorn.sh and the planner: refused in a second, or cut as the model needs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpupool.planner.fit import MIB
from tests.machine import fake_machine
from tests.plan_models import PUBLISHED
from tests.pool import ROOT, Pool, clean_environment
from tests.server.test_start import SCRIPTED, refusal

pytestmark = pytest.mark.server


def folder(tmp_path: Path, name: str) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(PUBLISHED[name].config))
    return model


def test_a_model_that_cannot_fit_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    model = folder(tmp_path, "meta-llama/Meta-Llama-3-70B")
    with fake_machine(tmp_path) as machine:
        for index in range(2):
            machine.set_gpu(index, name="NVIDIA A100-SXM4-80GB", total=81920 * MIB)
        said = refusal("--model_name", str(model), "--infer_type", "vllm", env=machine.env())
    assert "does not fit 1 x NVIDIA A100-SXM4-80GB per worker" in said
    assert "2 GPUs per worker (--per_proc_gpus 2)" in said


def test_auto_cuts_the_gpus_as_the_model_needs_it(tmp_path: Path) -> None:
    model = folder(tmp_path, "microsoft/phi-4")
    flags = ("--model_name", str(model), "--per_proc_gpus", "auto", "--infer_type", SCRIPTED)
    with fake_machine(tmp_path) as machine:
        for index in range(4):
            machine.set_gpu(index, name="NVIDIA A10", total=23028 * MIB)
        with Pool(tmp_path, *flags, env=machine.env()) as pool:
            pool.wait_ready(workers=2)
            assert [len(worker["gpus"]) for worker in pool.workers()] == [2, 2]


def test_a_load_corrects_the_next_plan(tmp_path: Path) -> None:
    model = folder(tmp_path, "Qwen/Qwen2.5-7B-Instruct")
    flags = ("--model_name", str(model), "--infer_type", SCRIPTED)
    with fake_machine(tmp_path) as machine:
        machine.set_gpu(0, name="NVIDIA A10", total=23028 * MIB)
        env = machine.env(XDG_CACHE_HOME=str(tmp_path / "cache"))
        before, *_ = plan(model, env)
        with Pool(tmp_path, *flags, "--", "--kv-cache-tokens", "60000", env=env) as pool:
            pool.wait_ready(workers=1)
            after, *_ = plan(model, env)
    assert before["overhead_bytes_measured"] is None
    # 21,824 tokens fewer than planned, of 57,344 bytes each.
    expected = before["overhead_bytes"] + 21_824 * 57_344
    assert after["overhead_bytes"] == after["overhead_bytes_measured"]
    assert after["overhead_bytes"] == pytest.approx(expected, rel=0.02)
    assert after["overhead_bytes_estimated"] == before["overhead_bytes"]


def plan(model: Path, env: dict[str, str]) -> list[dict[str, Any]]:
    """The options of `gpupool plan` on this machine."""
    command = [sys.executable, "-m", "gpupool.cli", "plan", "--json", "--model_name", str(model)]
    done = subprocess.run(
        command, env=clean_environment(**env), check=True, capture_output=True, text=True, cwd=ROOT
    )
    options: list[dict[str, Any]] = json.loads(done.stdout)["options"]
    return options
