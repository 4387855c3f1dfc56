"""What the planner counts from a config.json against what is published of the model."""

from __future__ import annotations

from contextlib import suppress

import pytest

from gpupool.errors import ConfigError
from gpupool.planner.config import read_config
from gpupool.planner.fit import GIB
from gpupool.planner.kv_cache import Cache
from gpupool.planner.split import weight_bytes
from tests.plan_models import PUBLISHED, Published, model


@pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED)
def test_parameters_are_those_published(published: Published) -> None:
    assert published.model().num_parameters == pytest.approx(published.parameters, rel=1e-4)


@pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED)
def test_a_token_takes_as_many_bytes_as_published(published: Published) -> None:
    assert Cache(published.model(), value_bytes=2).token_bytes == published.kv_bytes_per_token


@pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED)
def test_no_public_model_is_in_doubt(published: Published) -> None:
    assert published.model().doubts == ()


def test_the_table_has_models_of_all_sizes() -> None:
    counts = sorted(published.parameters for published in PUBLISHED.values())
    assert counts[0] < 136_000_000
    assert counts[-1] > 670_000_000_000
    assert len(counts) >= 25


@pytest.mark.parametrize(
    ("name", "num_gpus", "gib"),
    [
        ("Meta-Llama-3-8B", 1, 14.96),  # vllm-project/vllm#10511
        ("Meta-Llama-3-8B", 2, 7.48),
        ("Qwen2.5-32B-Instruct", 2, 30.71),  # vllm-project/vllm#15815
    ],
)
def test_weights_take_what_vllm_logged(name: str, num_gpus: int, gib: float) -> None:
    assert weight_bytes(model(name), num_gpus) / GIB == pytest.approx(gib, rel=0.02)


@pytest.mark.parametrize(
    ("name", "stored_bytes"),
    [
        # The sizes of their safetensors files.
        ("Qwen2.5-7B-Instruct-AWQ", 5_573_000_000),
        ("gpt-oss-20b", 13_761_000_000),
        ("gpt-oss-120b", 65_248_000_000),
    ],
)
def test_quantised_weights_take_what_their_files_do(name: str, stored_bytes: int) -> None:
    assert weight_bytes(model(name)) == pytest.approx(stored_bytes, rel=0.02)


def test_vllm_had_room_for_as_many_tokens_as_it_logged() -> None:
    # vllm-project/vllm#21348: Qwen3-235B on 4 GPUs, of which the one with the least room decided.
    cache = Cache(model("Qwen3-235B-A22B-FP8"), value_bytes=2, num_gpus=4)
    assert cache.num_tokens(8.11 * GIB, 40960) == pytest.approx(178_880, rel=0.02)
    # vllm-project/vllm#15815: Qwen2.5-32B on 2 GPUs.
    cache = Cache(model("Qwen2.5-32B-Instruct"), value_bytes=2, num_gpus=2)
    assert 7.71 * GIB // cache.block_bytes == pytest.approx(3947, abs=3)


def test_active_experts_decide_how_wide_a_step_is() -> None:
    assert model("DeepSeek-V3").intermediate_size == 9 * 2048
    assert model("Qwen1.5-MoE-A2.7B").intermediate_size == 4 * 1408 + 5632


def test_a_vision_tower_counts() -> None:
    with_eyes = model("Qwen2.5-VL-7B-Instruct")
    text = model("Qwen2.5-VL-7B-Instruct", vision_config=None)
    assert with_eyes.num_parameters - text.num_parameters == pytest.approx(676.5e6, rel=0.01)


def test_tied_weights_count_once() -> None:
    tied = model("Meta-Llama-3-8B", tie_word_embeddings=True)
    assert model("Meta-Llama-3-8B").num_parameters - tied.num_parameters == 128256 * 4096


@pytest.mark.parametrize(
    ("scaling", "length"),
    [
        (None, 8192),
        ({"rope_type": "linear", "factor": 4.0}, 32768),
        ({"type": "dynamic", "factor": 2}, 16384),
        ({"rope_type": "yarn", "factor": 4.0}, 8192),
        ({"rope_type": "llama3", "factor": 8.0}, 8192),
        ({"rope_type": "longrope", "short_factor": [1.0]}, 4096),
    ],
    ids=str,
)
def test_the_context_is_the_one_that_vllm_takes(
    scaling: dict[str, object] | None, length: int
) -> None:
    more = {"rope_scaling": scaling, "original_max_position_embeddings": 4096}
    assert model("Meta-Llama-3-8B", **more).max_positions == length


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4.15625),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.5),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4.5),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, 8),
        ({"quant_method": "fp8"}, 8),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 128}}},
            },
            4.125,
        ),
    ],
    ids=str,
)
def test_quantised_weights_have_their_bits(quantization: dict[str, object], bits: float) -> None:
    found = model("Meta-Llama-3-8B", quantization_config=quantization)
    assert found.quantization is not None
    assert found.quantization.bits == pytest.approx(bits, rel=1e-6)
    assert found.doubts == ()


def test_an_unknown_quantisation_is_in_doubt() -> None:
    found = model("Meta-Llama-3-8B", quantization_config={"quant_method": "new"})
    assert "'new'" in found.doubts[0]


def test_an_unknown_family_is_a_llama_in_doubt() -> None:
    found = model("Meta-Llama-3-8B", model_type="new_llm")
    assert found.num_parameters == model("Meta-Llama-3-8B").num_parameters
    assert "new_llm" in found.doubts[0]


def test_a_layer_of_which_nothing_is_said_keeps_all_tokens() -> None:
    found = model("gemma-3-27b-it", layer_types=["sliding_attention"])
    assert [layer.window for layer in found.layers] == [1024] + [None] * 61


@pytest.mark.parametrize(
    "change",
    [
        {"head_dim": 1e300},
        {"num_key_value_heads": 10**400},
        {"mlp_only_layers": 3, "num_experts": 4},
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": ["a", 0]}},
        {"hidden_size": 8},
        {"rope_scaling": {"type": "linear", "factor": float("nan")}},
        {"rope_scaling": {"type": "dynamic", "factor": -1e300}},
    ],
    ids=str,
)
def test_what_no_model_says_is_counted_or_refused(change: dict[str, object]) -> None:
    with suppress(ConfigError):
        assert Cache(model("phi-4", **change), value_bytes=2).num_tokens(GIB, 1024) >= 0


def test_layers_that_keep_a_state_are_in_doubt() -> None:
    kinds = ["linear_attention", "full_attention"] * 16
    assert "keep a state" in model("Meta-Llama-3-8B", layer_types=kinds).doubts[0]


@pytest.mark.parametrize(
    "value", [None, 0, -1, "many", True, 10**9, 10**400, float("nan"), float("inf")], ids=str
)
def test_a_size_that_cannot_be_is_named(value: object) -> None:
    with pytest.raises(ConfigError, match="num_hidden_layers") as raised:
        read_config(PUBLISHED["microsoft/phi-4"].config | {"num_hidden_layers": value})
    assert "\n" not in str(raised.value)
