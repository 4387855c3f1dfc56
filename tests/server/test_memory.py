"""start_gunicorn.sh and the planner: refused in a second, or cut as the model needs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpupool.planner.fit import MIB
from tests.machine import fake_machine
from tests.plan_models import PUBLISHED
from tests.pool import Pool
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
