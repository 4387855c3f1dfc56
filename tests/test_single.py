"""A single instance: the pool of one that its flags make."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gpupool.errors import ConfigError
from gpupool.single import make_environment
from tests.machine import Machine, fake_machine, uuid_of


@pytest.fixture(name="machine")
def _machine(tmp_path: Path) -> Iterator[Machine]:
    with fake_machine(tmp_path, gpus=2) as machine:
        machine.preload()
        yield machine


@pytest.fixture(name="no_gpus")
def _no_gpus(machine: Machine) -> None:
    """The library stays in this process once an earlier test has loaded it: an empty machine."""
    machine.remove_gpu(0)
    machine.remove_gpu(1)


def refusal(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        make_environment("vllm", list(arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_gpus_of_gpuid_are_one_worker(machine: Machine) -> None:
    flags = ["--model_name", "M", "--gpuid", "0,1", "--port", "6000"]
    assert make_environment("vllm", flags) == {
        "HF_MODEL_NAME": "M",
        "INFER_TYPE": "vllm",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "PER_PROC_GPUS": "2",
        "GPUPOOL_WORKERS": "1",
        "GPUPOOL_SINGLE": "1",
        "PORT": "6000",
    }


def test_without_gpuid_it_is_the_first_gpu(machine: Machine) -> None:
    found = make_environment("vllm", ["--model_name", "M"])
    assert found["CUDA_VISIBLE_DEVICES"] == uuid_of(0)
    assert found["PER_PROC_GPUS"] == "1"
    assert "PORT" not in found


def test_without_gpuid_it_is_the_first_of_the_visible_gpus(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert make_environment("vllm", [])["CUDA_VISIBLE_DEVICES"] == uuid_of(1)


def test_hidden_gpus_are_not_taken(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    machine.init_error(999)  # not even asked
    assert "CUDA_VISIBLE_DEVICES" not in make_environment("vllm", [])


def test_an_unknown_gpu_is_named_with_those_there_are(machine: Machine) -> None:
    message = refusal("--gpuid", "0,7")
    assert message.startswith("--gpuid '0,7': there is no GPU '7'")
    assert uuid_of(1) in message


def test_an_empty_gpuid_is_refused(machine: Machine) -> None:
    assert "names no GPU" in refusal("--gpuid", "-1")


@pytest.mark.usefixtures("no_gpus")
def test_without_gpus_it_runs_on_the_cpu() -> None:
    found = make_environment("transformers", ["--model_name", "M"])
    assert "CUDA_VISIBLE_DEVICES" not in found
    assert (found["PER_PROC_GPUS"], found["GPUPOOL_WORKERS"]) == ("1", "1")


@pytest.mark.usefixtures("no_gpus")
def test_a_gpuid_without_gpus_is_refused() -> None:
    assert "this machine has no GPU" in refusal("--gpuid", "0")


@pytest.mark.usefixtures("no_gpus")
def test_the_flags_of_a_pool_are_taken_as_they_are_there() -> None:
    flags = ["--api_key", "a", "--api-key=b", "--trust_remote_code", "--", "--dtype", "a b"]
    found = make_environment("vllm", flags)
    assert found["GPUPOOL_API_KEY"] == "a,b"
    assert found["GPUPOOL_TRUST_REMOTE_CODE"] == "1"
    assert found["GPUPOOL_ENGINE_ARGS"] == "--dtype 'a b'"


@pytest.mark.parametrize("name", ["workers", "per-proc-gpus", "infer_type", "cuda_visible_devices"])
def test_what_a_single_instance_decides_itself_is_refused(name: str) -> None:
    assert "a single instance has --gpuid" in refusal(f"--{name}=1")


def test_a_mistyped_flag_names_the_nearest() -> None:
    assert "did you mean 'gpuid'" in refusal("--gpu_id", "0")


def test_a_missing_value_is_one_line() -> None:
    assert "--port" in refusal("--port")
