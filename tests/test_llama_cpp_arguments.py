"""llama-server's flags after --, and what a slice is started with; no llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpupool.engines.llama_cpp_arguments import ALIASES, FLAGS, OURS, parse_engine_args
from gpupool.engines.llama_cpp_defaults import GPU_SLOTS, make_params
from gpupool.errors import ConfigError
from gpupool.gguf_file import GgufModel
from gpupool.gpus import Gpu
from gpupool.partition import Slice

CPU_SLICE = Slice(slot=0, gpus=(), cpus=(0, 1, 2))


def gpu(gib: int) -> Gpu:
    return Gpu(index=0, uuid=f"GPU-{gib}", name="x", total_bytes=gib << 30, free_bytes=gib << 30)


@pytest.fixture
def model(tmp_path: Path) -> GgufModel:
    """Cached in 128 KiB per token, as a model of 8 billion weights is; 1 GiB long."""
    file = tmp_path / "model.gguf"
    with file.open("wb") as handle:
        handle.truncate(1 << 30)
    values = {
        "context_length": 8192,
        "block_count": 32,
        "embedding_length": 4096,
        "attention.head_count": 32,
        "attention.head_count_kv": 8,
    }
    named = {f"llama.{name}": value for name, value in values.items()}
    return GgufModel((file,), {"general.architecture": "llama", **named})


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--ctx-size", "4096"], {"n_ctx": 4096}),
        (["-c", "4096", "-np", "4"], {"n_ctx": 4096, "n_parallel": 4}),
        (["--ctx-size=4096"], {"n_ctx": 4096}),
        (["-ngl", "all"], {"n_gpu_layers": 999}),
        (["-fa", "off"], {"flash_attn_type": "LLAMA_FLASH_ATTN_TYPE_DISABLED"}),
        (["-ctk", "q8_0"], {"cache_type_k": "GGML_TYPE_Q8_0"}),
        (["-ts", "3,1"], {"tensor_split": [3.0, 1.0]}),
        (["--mlock"], {"load_mode": "LLAMA_LOAD_MODE_MMAP_MLOCK"}),
        (["--no-jinja"], {"use_jinja": False}),
        (["--rope-freq-base", "1e6"], {"rope_freq_base": 1e6}),
        (["-t", "3"], {"cpuparams.n_threads": 3}),
        (["--reranking"], {"pooling_type": "LLAMA_POOLING_TYPE_RANK"}),
        (["--pooling", "rank"], {"pooling_type": "LLAMA_POOLING_TYPE_RANK"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_set_what_they_say(args: list[str], expected: dict[str, Any]) -> None:
    assert parse_engine_args(args) == expected


def test_adapters_add_up(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter.gguf"
    adapter.touch()
    given = ["--lora", str(adapter), "--lora-scaled", f"{adapter}:0.5"]
    expected = [(str(adapter), 1.0), (str(adapter), 0.5)]
    assert parse_engine_args(given) == {"lora_adapters": expected}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--ctx-sise", "1"], "did you mean '--ctx-size'"),
        (["--ctx-size"], "needs a value"),
        (["--ctx-size", "many"], "'many'; it must be a number"),
        (["--parallel", "0"], "from 1 to 256"),
        (["--mlock=1"], "takes no value"),
        (["-fa", "maybe"], "one of on, off, auto"),
        (["--rope-freq-base", "nan"], "a finite number"),
        (["--chat-template-file", "/no/such"], "a readable file"),
        (["--lora", "/no/such"], "LoRA adapter"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments_are_explained(args: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_engine_args(args)


@pytest.mark.parametrize(
    ("name", "said"),
    [("--port", "--port"), ("--api-key", "--api_key"), ("-m", "--model_name"), ("--temp", "each")],
)
def test_what_the_pool_decides_is_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.*{said}"):
        parse_engine_args([name, "1"])


def test_aliases_lead_to_flags() -> None:
    assert set(ALIASES.values()) <= set(FLAGS)
    assert not set(OURS) & (set(FLAGS) | set(ALIASES))


def test_cpu_slice_computes_on_its_own_cores(model: GgufModel) -> None:
    params = make_params({}, model, CPU_SLICE)
    assert (params["cpuparams.n_threads"], params["n_gpu_layers"]) == (3, 0)


def test_every_slot_has_a_context_of_its_own(model: GgufModel) -> None:
    params = make_params({}, model, CPU_SLICE)
    assert params["n_ctx"] == params["n_parallel"] * 4096


def test_short_context_of_a_model_is_not_exceeded(model: GgufModel) -> None:
    model.metadata["llama.context_length"] = 512
    assert make_params({"n_parallel": 4}, model, CPU_SLICE)["n_ctx"] == 4 * 512


@pytest.mark.parametrize(
    ("context", "slots"),
    [(100, 1), (4096, 1), (8191, 1), (16384, 4), (32768, 8), (65536, 8)],
)
def test_a_given_context_is_cut_into_slots_that_have_what_was_asked_for(
    model: GgufModel, context: int, slots: int
) -> None:
    """`--ctx-size 4096` alone was cut into 8 slots, and a request had 512 tokens."""
    params = make_params({"n_ctx": context}, model, CPU_SLICE)
    assert (params["n_ctx"], params["n_parallel"]) == (context, slots)


def test_a_given_context_of_a_short_model_is_cut_by_what_it_knows(model: GgufModel) -> None:
    model.metadata["llama.context_length"] = 512
    assert make_params({"n_ctx": 2048}, model, CPU_SLICE)["n_parallel"] == 4


def test_slots_are_what_the_memory_holds(model: GgufModel) -> None:
    """A slot takes 512 MiB: 85 % of 8 GiB less 1 GiB of weights are 11 slots."""
    params = make_params({}, model, Slice(0, (gpu(8),), ()))
    assert (params["n_parallel"], params["n_gpu_layers"]) == (11, 999)


def test_slots_of_a_slice_count_all_its_gpus(model: GgufModel) -> None:
    assert make_params({}, model, Slice(0, (gpu(8), gpu(80)), ()))["n_parallel"] == GPU_SLOTS


def test_given_arguments_win(model: GgufModel) -> None:
    given = {"n_ctx": 999, "n_parallel": 3, "n_batch": 16, "verbosity": 4}
    params = make_params(given, model, CPU_SLICE)
    assert {name: params[name] for name in given} == given
    assert params["n_ubatch"] == 16
