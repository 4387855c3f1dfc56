"""The preflight's look at the memory: what it refuses, warns of, and chooses; on stubbed GPUs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpupool.errors import ConfigError
from gpupool.memory import choose_gpus, judge
from gpupool.planner.arguments import read_arguments
from gpupool.planner.fit import MIB
from gpupool.settings import Settings, read_settings
from tests.machine import Machine, fake_machine
from tests.plan_models import PUBLISHED


@pytest.fixture(name="gpus")
def _gpus(tmp_path: Path) -> Iterator[Machine]:
    """Four A10."""
    (tmp_path / "machine").mkdir()
    with fake_machine(tmp_path / "machine") as machine:
        machine.preload()
        for index in range(4):
            machine.set_gpu(index, name="NVIDIA A10", total=23028 * MIB)
        yield machine


def settings(folder: Path, name: str, *engine_args: str, **more: Any) -> Settings:
    model = folder / "model"
    model.mkdir(exist_ok=True)
    config = PUBLISHED[name].config | more.pop("config", {})
    (model / "config.json").write_text(json.dumps(config))
    return Settings(model_name=str(model), infer_type="vllm", engine_args=engine_args, **more)


pytestmark = pytest.mark.usefixtures("gpus")


def refusal(asked: Settings, num_gpus: int) -> str:
    with pytest.raises(ConfigError) as raised:
        judge(asked, num_gpus)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_fits_is_not_mentioned(tmp_path: Path) -> None:
    assert judge(settings(tmp_path, "Qwen/Qwen2.5-7B-Instruct"), 1) is None


def test_what_cannot_fit_is_refused_with_numbers_and_remedies(tmp_path: Path) -> None:
    said = refusal(settings(tmp_path, "Qwen/Qwen2.5-32B-Instruct"), 2)
    assert "does not fit 2 x NVIDIA A10 per worker: of 20.7 GiB on each" in said
    assert "weights take 30.5 GiB" in said
    assert "8 GPUs per worker (here: 4)" in said
    assert "--memory_plan warn" in said


def test_the_refusal_can_be_overridden(tmp_path: Path) -> None:
    name = "Qwen/Qwen2.5-32B-Instruct"
    assert "does not fit" in (judge(settings(tmp_path, name, memory_plan="warn"), 2) or "")
    assert judge(settings(tmp_path, name, memory_plan="off"), 2) is None


def test_a_doubt_is_a_warning(tmp_path: Path) -> None:
    tight = settings(tmp_path, "Qwen/Qwen2.5-7B-Instruct", "--max-model-len", "80000")
    assert "may not fit" in (judge(tight, 1) or "")


def test_a_model_that_the_planner_only_guesses_at_is_never_refused(tmp_path: Path) -> None:
    asked = settings(tmp_path, "Qwen/Qwen2.5-32B-Instruct", config={"model_type": "new"})
    assert "does not fit" in (judge(asked, 1) or "")


def test_of_different_gpus_none_is_refused(tmp_path: Path, gpus: Machine) -> None:
    gpus.set_gpu(0, name="NVIDIA A100", total=81920 * MIB)
    asked = settings(tmp_path, "Qwen/Qwen2.5-32B-Instruct")
    assert "does not fit" in (judge(asked, 2) or "")


@pytest.mark.parametrize(
    "config",
    [{"hidden_size": None}, {"layer_types": [], "sliding_window": 9}, {"quantization_config": 3}],
)
def test_a_configuration_that_cannot_be_read_stops_no_start(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    judge(settings(tmp_path, "meta-llama/Llama-3.2-1B", config=config), 1)


def test_a_planner_that_fails_stops_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("gpupool.memory.make_plan", fail)
    said = judge(settings(tmp_path, "meta-llama/Llama-3.2-1B"), 1)
    assert "the planner failed (ZeroDivisionError())" in (said or "")


def test_a_shorter_context_that_was_given_counts(tmp_path: Path) -> None:
    name = "mistralai/Mistral-Nemo-Base-2407"
    assert "--max-model-len" in refusal(settings(tmp_path, name), 2)
    assert judge(settings(tmp_path, name, "--max_model_len", "8k"), 2) is None


def test_weights_made_smaller_while_loading_count(tmp_path: Path) -> None:
    name = "Qwen/Qwen2.5-32B-Instruct"
    assert (
        judge(settings(tmp_path, name, "--quantization", "fp8", "--max-model-len=4096"), 4) is None
    )
    assert judge(settings(tmp_path, name, "--max-model-len=4096"), 4) is not None


@pytest.mark.parametrize(
    "arguments",
    [
        ("--cpu-offload-gb", "40"),
        ("--kv_cache_memory_bytes=1000000000",),
        ("--hf-overrides.num_hidden_layers", "2"),
        ("--max-model-len", "auto"),
        ("--dtype", "unheard"),
        ("--max-model-len", "9" * 400),
        ("--max-model", "2048"),  # vLLM completes what is begun
        ("-pp", "2"),
        ("--gpu-memory-utilization", "0"),
        ("--gpu-memory-utilization", "much"),
    ],
)
def test_what_the_planner_cannot_judge_it_leaves_to_the_engine(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    assert judge(settings(tmp_path, "meta-llama/Llama-3.1-405B", *arguments), 1) is None


def test_an_unknown_way_of_quantising_is_only_in_doubt(tmp_path: Path) -> None:
    asked = settings(tmp_path, "Qwen/Qwen2.5-32B-Instruct", "--quantization", "torchao")
    assert "does not fit" in (judge(asked, 1) or "")


def of_engine(asked: Settings, engine: str) -> Settings:
    return asked.model_copy(update={"infer_type": engine})


def test_other_engines_cannot_load_weights_that_no_gpu_holds(tmp_path: Path) -> None:
    asked = of_engine(settings(tmp_path, "Qwen/Qwen2.5-32B-Instruct"), "transformers")
    said = refusal(asked, 1)
    assert "of 22.5 GiB on each, weights take 61.0 GiB. What would help: 4 GPUs" in said
    # Its device map puts on the CPU what several GPUs do not hold.
    assert "does not fit 2 x" in (judge(asked, 2) or "")
    assert judge(asked, 4) is None
    with_arguments = settings(tmp_path, "Qwen/Qwen2.5-32B-Instruct", "--device-map", "cpu")
    assert judge(of_engine(with_arguments, "transformers"), 1) is None


def test_other_engines_take_what_room_there_is_for_the_context(tmp_path: Path) -> None:
    asked = settings(tmp_path, "Qwen/Qwen2.5-7B-Instruct", config={"max_position_embeddings": 1e9})
    assert judge(of_engine(asked, "transformers"), 1) is None
    assert judge(of_engine(asked, "saas_of_somebody:Engine"), 1) is None


def test_arguments_are_read_as_vllm_reads_them() -> None:
    words = "--max-model-len 8k --max_num_seqs=64 --kv-cache-dtype fp8 --enforce-eager"
    found = read_arguments([*words.split(), "--max-num-batched-tokens", "1.5K", "--unknown"])
    ask = found.ask
    assert (ask.max_model_len, ask.max_num_seqs, ask.max_num_batched_tokens) == (8000, 64, 1536)
    assert (ask.kv_cache_dtype, ask.is_eager, found.unclear) == ("fp8", True, None)


@pytest.mark.parametrize(
    ("name", "num_gpus"),
    [
        ("meta-llama/Llama-3.2-1B", 1),
        ("microsoft/phi-4", 2),
        ("mistralai/Mistral-Nemo-Base-2407", 4),
    ],
)
def test_auto_takes_as_few_gpus_as_the_model_fits(tmp_path: Path, name: str, num_gpus: int) -> None:
    assert choose_gpus(settings(tmp_path, name)) == num_gpus


def test_auto_without_room_says_what_would_help(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is auto, but .* does not fit 4 x NVIDIA A10"):
        choose_gpus(settings(tmp_path, "meta-llama/Llama-3.1-405B"))


def test_auto_without_gpus_is_one(tmp_path: Path, gpus: Machine) -> None:
    for index in range(4):
        gpus.remove_gpu(index)
    assert choose_gpus(settings(tmp_path, "meta-llama/Llama-3.1-405B")) == 1


@pytest.mark.parametrize("value", ["auto", "AUTO"])
def test_auto_is_read_from_the_environment(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PER_PROC_GPUS", value)
    assert read_settings().per_proc_gpus == 0


@pytest.mark.parametrize(
    ("variable", "value"),
    [("PER_PROC_GPUS", "0"), ("PER_PROC_GPUS", "some"), ("GPUPOOL_MEMORY_PLAN", "maybe")],
)
def test_other_words_are_refused(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=variable):
        read_settings()
