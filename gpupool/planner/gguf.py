"""A GGUF file as the planner's model: sizes from its metadata, bytes by ggml's types.

Source of the types: ggml's block layouts, as in the gguf package's GGML_QUANT_SIZES.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpupool.errors import ConfigError
from gpupool.gguf_file import GgufModel, GgufTensor, all_tensors, find_gguf, read_gguf
from gpupool.planner.config import read_config
from gpupool.planner.fit import Stored
from gpupool.planner.model import Model

TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
"""ggml's number of a type: its name, values in a block, bytes of a block."""

FAMILIES = {
    "gptneox": "gpt_neox",
    "phi2": "phi",
    "command-r": "cohere",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "deepseek2": "deepseek_v3",
    "gpt-oss": "gpt_oss",
    "qwen2vl": "qwen2",
}
"""llama.cpp's names of architectures where they differ from transformers'."""

KEYS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "sliding_window": "attention.sliding_window",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "first_k_dense_replace": "leading_dense_block_count",
    "kv_lora_rank": "attention.kv_lora_rank",
    "q_lora_rank": "attention.q_lora_rank",
    "qk_rope_head_dim": "rope.dimension_count",
    "v_head_dim": "attention.value_length",
}


def is_gguf(path: Path) -> bool:
    """Whether a model's path means GGUF files."""
    if path.is_dir():
        return not (path / "config.json").is_file() and any(path.glob("*.gguf"))
    return path.is_file() and path.suffix == ".gguf"


def read_model(name: str) -> tuple[Model, Stored, dict[str, int]]:
    """The model, its bytes, and its bytes by type; ConfigError as find_gguf and read_gguf."""
    found = read_gguf(find_gguf(name))
    tensors = all_tensors(found)
    by_type = bytes_by_type(tensors)
    config = as_config(found, has_head=any(t.name == "output.weight" for t in tensors))
    stored = Stored(sum(by_type.values()), sum(tensor.num_values for tensor in tensors))
    model = read_config(config, where=str(found.path))
    return replace(model, is_layered=True), stored, by_type


def bytes_by_type(tensors: tuple[GgufTensor, ...]) -> dict[str, int]:
    """Bytes of the weights by ggml's names, the most first."""
    counter: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.kind not in TYPES:
            raise ConfigError(
                f"the GGUF file's tensor {tensor.name!r} has type {tensor.kind}, which the "
                "planner does not know"
            )
        name, block, num_bytes = TYPES[tensor.kind]
        counter[name] += tensor.num_values // block * num_bytes
    return dict(counter.most_common())


def as_config(found: GgufModel, *, has_head: bool) -> dict[str, Any]:
    """The metadata under the names of a config.json."""
    family = str(found.metadata["general.architecture"])
    config: dict[str, Any] = {"model_type": FAMILIES.get(family, family), "torch_dtype": "float16"}
    for name, key in KEYS.items():
        if value := found.value(key, 0):
            config[name] = value
    if config.get("kv_lora_rank"):
        config["qk_nope_head_dim"] = config.get("head_dim", 0) - config.get("qk_rope_head_dim", 0)
    tokens = found.metadata.get("tokenizer.ggml.tokens")
    num_tokens = len(tokens) if isinstance(tokens, list) else 0
    config["vocab_size"] = found.value("vocab_size", num_tokens)
    config["tie_word_embeddings"] = not has_head
    return config
