"""The `gpupool` command: what it prints, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gpupool import cli
from gpupool.planner.arguments import read_arguments
from gpupool.planner.fit import Ask
from gpupool.settings import read_settings
from tests.demo_model import gguf_path, model_folder
from tests.machine import fake_machine
from tests.plan_examples import DOCUMENT, ROOT, rendered
from tests.plan_models import PUBLISHED


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    return write(tmp_path, "meta-llama/Meta-Llama-3-70B")


def write(folder: Path, name: str) -> Path:
    (folder / "config.json").write_text(json.dumps(PUBLISHED[name].config))
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gpupool.cli", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
    )


class Command:
    """The command in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capfd = capfd

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["gpupool", "plan", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = self._capfd.readouterr()
        return int(ended.value.code or 0), out, err


@pytest.fixture(name="plan")
def _plan(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capfd)


def parsed(found: tuple[int, str, str]) -> Any:
    return json.loads(found[1])


def test_the_examples_in_the_documentation_are_what_is_printed() -> None:
    assert DOCUMENT.read_text() == rendered(), "run `python -m tests.plan_examples`"


def test_a_plan_takes_about_a_second() -> None:
    start = time.monotonic()
    done = run("plan", "--model_name", model_folder(), "--gpu", "8x H100")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 3  # 0.6 s on an idle machine


def test_the_start_line_is_exact(plan: Command, folder: Path) -> None:
    _, out, _ = plan("--model_name", folder, "--shape", "BM.GPU.A100-V2.8", "--max_model_len", 8000)
    expected = f"bash start_gunicorn.sh --model_name {folder} --per_proc_gpus 2 --infer_type vllm"
    assert f"\n  {expected} -- --max-model-len 8000\n" in out


def test_what_was_asked_for_is_in_the_start_line(plan: Command, folder: Path) -> None:
    asked = ("--kv-cache-dtype", "fp8", "--gpu-memory-utilization", "0.8", "--dtype", "float16")
    asked += ("--max-num-seqs", "64", "--max-num-batched-tokens", "4096", "--enforce-eager")
    _, out, _ = plan("--model_name", folder, "--gpu", "8x H100", *asked)
    [line] = {line for line in out.splitlines() if "start_gunicorn.sh" in line}
    given = line.partition(" -- ")[2].split()
    assert sorted(given) == sorted(asked)


def test_the_start_line_is_one_that_start_gunicorn_reads(
    plan: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "it's a model"
    folder.mkdir()
    write(folder, "meta-llama/Meta-Llama-3-70B")
    asked = ("--max-model-len", 8000, "--gpu-memory-utilization", 0.8, "--dtype", "float16")
    _, out, _ = plan("--model_name", folder, "--gpu", "8x H100", *asked)
    [line] = {line.strip() for line in out.splitlines() if "start_gunicorn.sh" in line}
    environment = started(line, tmp_path)
    assert environment["HF_MODEL_NAME"] == str(folder)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = read_settings()
    assert (settings.per_proc_gpus, settings.infer_type) == (4, "vllm")
    given = read_arguments(settings.engine_args).ask
    assert given == Ask(max_model_len=8000, gpu_memory_utilization=0.8, dtype="float16")


def started(line: str, tmp_path: Path) -> dict[str, str]:
    """The settings with which a start line would become gunicorn."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$2" = gunicorn ] && exec env -0\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    env = {"PATH": f"{python.parent}:/usr/bin:/bin", "VIRTUAL_ENV": str(tmp_path)}
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=env, check=True, capture_output=True)
    pairs = [pair.split("=", 1) for pair in done.stdout.decode().split("\0") if pair]
    return {
        name: value
        for name, value in pairs
        if name.startswith(("GPUPOOL_", "HF_", "INFER_", "PER_", "CUDA_"))
    }


def test_the_gpus_that_were_asked_for_are_in_the_start_line(
    plan: Command, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "gpus").mkdir()
    with fake_machine(tmp_path / "gpus", gpus=3) as machine:
        machine.preload()
        _, out, _ = plan("--model_name", folder, "--cuda_visible_devices", "0,2")
    assert "--per_proc_gpus 2 --infer_type vllm --cuda_visible_devices 0,2\n" in out


def test_llama_cpp_is_told_its_own_arguments(plan: Command) -> None:
    _, out, _ = plan("--model_name", gguf_path(), "--gpu", "A10", "--max_model_len", 2048)
    assert "--infer_type llama_cpp -- --ctx-size 65536 --parallel 32\n" in out


def test_all_parts_of_the_memory_are_shown(plan: Command, folder: Path) -> None:
    _, out, _ = plan("--model_name", folder, "--gpu", "2x A100-80GB")
    assert "KV cache: 320.0 KiB for a token\n" in out
    assert "overhead with 2 GPU(s), estimated: CUDA 0.5 GiB, one step 1.1 GiB, CUDA graphs" in out


def test_underscores_and_hyphens_are_the_same(plan: Command, folder: Path) -> None:
    ways = (("--model_name", "--max_model_len"), ("--model-name", "--max-model-len"))
    first, second = (plan(a, folder, "--gpu", "2x H100", b, 4096) for a, b in ways)
    assert first == second


def test_without_room_the_exit_code_says_so(plan: Command, folder: Path) -> None:
    code, out, _ = plan("--model_name", folder, "--gpu", "A10")
    assert code == 1
    assert "nothing fits: with 1 GPU(s) per worker" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--gpu", "2x Mystery"), "'Mystery' is not known"),
        (("--gpu", "2x B300-9TB"), "(did you mean 'B200-180GB'?)"),
        (("--gpu", "2x Mystery-9TB"), "'Mystery-9TB' is not known; known are"),
        (("--shape", "BM.GPU.H100.9"), "did you mean 'BM.GPU.H100.8'?"),
        (("--gpu", "A10", "--shape", "BM.GPU.H100.8"), "give one of them"),
        (("--gpu", "A10", "--dtype", "bfloat61"), "did you mean 'bfloat16'?"),
        (("--gpu", "A10", "--kv_cache_dtype", "fp9"), "did you mean 'fp8'?"),
        (("--gpu", "A10", "--quantization", "fp9"), "did you mean 'fp8'?"),
        (("--gpu", "A10", "--max_model_len", "0"), "--max_model_len"),
        (("--gpu", "A10", "--max_model_len", "9" * 400), "--max_model_len"),
        (("--gpu", "A10", "--length", "many"), "--length"),
        (("--gpu", "A10", "--gpu_memory_utilization", "nan"), "--gpu_memory_utilization"),
        (("--gpus", "A10"), "No such option: --gpus"),
    ],
)
def test_what_cannot_be_is_one_line(
    plan: Command, folder: Path, arguments: tuple[str, ...], said: str
) -> None:
    code, out, err = plan("--model_name", folder, *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


DAMAGED = {
    "config.json": b"{",
    "model.safetensors": b"\xff" * 64,
    "model.safetensors.index.json": b"[",
    "model.gguf": b"GGUF" + b"\xff" * 64,
}


@pytest.mark.parametrize("file", DAMAGED)
def test_a_damaged_model_is_one_line(plan: Command, folder: Path, file: str) -> None:
    (folder / file).write_bytes(DAMAGED[file])
    if file.endswith(".gguf"):
        (folder / "config.json").unlink()
    code, out, err = plan("--model_name", folder, "--gpu", "A10")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert file in err


def test_json_has_the_numbers_in_bytes(plan: Command, folder: Path) -> None:
    found = parsed(plan("--model_name", folder, "--gpu", "2x A100-80GB", "--json"))
    assert found["num_parameters"] == 70553706496
    one, two = found["options"]
    assert (one["verdict"], two["verdict"]) == ("fails", "fits")
    assert two["weights_bytes"] == pytest.approx(70553706496, rel=0.001)
    assert two["kv_cache_bytes_per_token"] == 163840
    assert found["throughput"]["start"].endswith("--per_proc_gpus 2 --infer_type vllm")


def test_json_says_what_is_stored(plan: Command) -> None:
    found = parsed(plan("--model_name", gguf_path(), "--gpu", "A10", "--json"))
    assert set(found["stored_bytes"]) == {"Q4_1", "Q8_0", "F32"}
    assert "--infer_type llama_cpp" in found["throughput"]["start"]


def test_only_the_number_asked_for_is_planned(plan: Command, folder: Path) -> None:
    found = parsed(plan("--model_name", folder, "--gpu", "8x H100", "--per_proc_gpus", 4, "--json"))
    assert [option["per_proc_gpus"] for option in found["options"]] == [4]


def test_why_a_number_is_not_possible_is_said(plan: Command, folder: Path) -> None:
    code, out, _ = plan("--model_name", folder, "--gpu", "8x H100", "--per_proc_gpus", 3)
    assert code == 1
    assert "3: not possible: 64 attention heads are not divisible by 3" in out


def test_aqua_has_its_shape(plan: Command, folder: Path) -> None:
    code, out, _ = plan("--model_name", folder, "--shape", "BM.GPU.A100-V2.8", "--aqua")
    assert code == 0
    [report] = json.loads(out)["recommendations"]
    assert report["shape_details"]["name"] == "BM.GPU.A100-V2.8"
    assert report["shape_details"]["gpu_specs"]["gpu_count"] == 8
    best = report["configurations"][0]
    assert best["model_details"]["model_size_gb"] == pytest.approx(141.1, rel=0.01)
    assert best["model_details"]["total_model_gb"] == pytest.approx(
        best["model_details"]["model_size_gb"] + best["model_details"]["kv_cache_size_gb"], abs=0.02
    )
    assert best["deployment_params"]["max_model_len"] == 8192
    assert best["deployment_params"]["params"] == "--tensor-parallel-size 2"


def test_aqua_looks_at_all_shapes(plan: Command, folder: Path) -> None:
    found = parsed(plan("--model_name", folder, "--aqua"))
    names = {report["shape_details"]["name"] for report in found["recommendations"]}
    assert {"BM.GPU.H100.8", "BM.GPU.H200.8", "BM.GPU.A100-V2.8"} <= names
    assert not names & {"VM.GPU.A10.1", "VM.GPU2.1", "BM.GPU3.8"}
    assert found["troubleshoot"] is None


def test_aqua_says_what_is_missing(plan: Command, folder: Path) -> None:
    code, out, _ = plan("--model_name", folder, "--shape", "VM.GPU.A10.1", "--aqua")
    assert code == 1
    assert "GB are missing on each of 1 GPU(s)" in json.loads(out)["troubleshoot"]
