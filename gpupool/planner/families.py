"""How model families differ from a Llama: which matrices have biases, norms, tied weights. Pure.

Sources: the modeling_*.py of transformers 5.19, checked one by one against the parameter counts
of tests/plan_models.json.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpupool.planner.fields import Fields


@dataclass(frozen=True, slots=True)
class Family:
    """What a family's config.json does not say, or says in a field of its own."""

    is_gated: bool = True  # gate, up and down; else up and down
    qkv_bias: bool | str = "attention_bias"  # the field that says so, or what always holds
    out_bias: bool | str = "attention_bias"
    mlp_bias: bool | str = "mlp_bias"
    num_norms: int = 2  # of the hidden size, in each layer
    has_norm_bias: bool = False
    has_head_norms: bool = False  # one norm of the head's size for queries, one for keys
    has_wide_norms: bool = False  # the same over all heads
    has_positions: bool = False  # a learned table
    extra_positions: int = 0
    is_tied: bool = False  # where the configuration does not say
    head_bias: bool = False
    window: str = "all"  # which layers slide: all, none, alternate, or by pattern
    has_sinks: bool = False  # one number per head
    router_bias: bool = False


LLAMA = Family()
QWEN2 = Family(qkv_bias=True, out_bias=False, mlp_bias=False, window="late")
QWEN3 = Family(has_head_norms=True, window="late")
FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "ministral": LLAMA,
    "mixtral": LLAMA,
    "granite": LLAMA,
    "smollm3": Family(is_tied=True, window="none"),
    "phi3": LLAMA,
    "deepseek_v2": LLAMA,
    "deepseek_v3": LLAMA,
    "kimi_k2": LLAMA,
    "qwen2": QWEN2,
    "qwen2_vl": QWEN2,
    "qwen2_5_vl": QWEN2,
    "qwen2_moe": QWEN2,
    "qwen3": QWEN3,
    "qwen3_moe": QWEN3,
    "gemma": Family(is_tied=True),
    "gemma2": Family(is_tied=True, num_norms=4, window="alternate"),
    "gemma3": Family(is_tied=True, num_norms=4, has_head_norms=True, window="pattern"),
    "olmo2": Family(has_wide_norms=True),
    "cohere": Family(is_tied=True, num_norms=1),
    "cohere2": Family(is_tied=True, num_norms=1, window="pattern"),
    "gpt_oss": Family(
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        window="alternate",
        has_sinks=True,
        router_bias=True,
    ),
    "phi": Family(
        is_gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        num_norms=1,
        has_norm_bias=True,
        head_bias=True,
    ),
    "gpt2": Family(
        is_gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        has_norm_bias=True,
        has_positions=True,
        is_tied=True,
    ),
    "opt": Family(
        is_gated=False,
        qkv_bias="enable_bias",
        out_bias="enable_bias",
        mlp_bias="enable_bias",
        has_norm_bias=True,
        has_positions=True,
        extra_positions=2,
        is_tied=True,
    ),
    "gpt_neox": Family(
        is_gated=False, qkv_bias=True, out_bias=True, mlp_bias=True, has_norm_bias=True
    ),
    "falcon": Family(
        is_gated=False,
        qkv_bias="bias",
        out_bias="bias",
        mlp_bias="bias",
        num_norms=1,
        has_norm_bias=True,
        is_tied=True,
    ),
    "starcoder2": Family(
        is_gated=False,
        qkv_bias="use_bias",
        out_bias="use_bias",
        mlp_bias="use_bias",
        has_norm_bias=True,
        is_tied=True,
    ),
}

LLAMA_SIZES = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
}
DEFAULTS: dict[str, dict[str, int]] = {
    "llama": LLAMA_SIZES,
    "mistral": LLAMA_SIZES | {"num_key_value_heads": 8, "intermediate_size": 14336},
    "gemma3": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
    },
}
"""Sizes that a model with more than text may leave out, as transformers fills them in."""

ON_BY_DEFAULT = {"enable_bias", "use_bias"}
"""Fields that mean yes where config.json leaves them out."""


def has_bias(fields: Fields, said: bool | str) -> bool:
    """Whether a family's matrix has a bias in this model."""
    return said if isinstance(said, bool) else fields.flag(said, said in ON_BY_DEFAULT)


def windows(fields: Fields, family: Family) -> list[int | None]:
    """The sliding window of each layer, as vLLM takes it: `layer_types` where it stands, else
    the family's own rule, else one window for all layers."""
    num_layers = fields.size("num_hidden_layers")
    window = fields.count("sliding_window") or None
    if window is None or not fields.flag("use_sliding_window", True):
        return [None] * num_layers
    kinds = fields.get("layer_types")
    if isinstance(kinds, list):
        slides = [kind == "sliding_attention" for kind in kinds[:num_layers]]
        slides += [False] * (num_layers - len(slides))
        return [window if slide else None for slide in slides]
    if family.window == "none":
        return [None] * num_layers
    if family.window == "alternate":
        return [window if i % 2 == 0 else None for i in range(num_layers)]
    if family.window == "pattern":
        every = fields.count("sliding_window_pattern") or 6
        return [window if (i + 1) % every else None for i in range(num_layers)]
    if family.window == "late":
        # Qwen's field is off unless it is there and true; the first layers see everything.
        first = fields.count("max_window_layers") if fields.flag("use_sliding_window") else 1 << 30
        return [window if i >= first else None for i in range(num_layers)]
    return [window] * num_layers
