"""config.json -> Model. Pure; any process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpupool.planner.dtypes import METHODS, read_quantization
from gpupool.planner.families import DEFAULTS, FAMILIES, LLAMA, Family, windows
from gpupool.planner.fields import Fields
from gpupool.planner.model import Model, Part, Quantization, Split
from gpupool.planner.vision import vision_parts
from gpupool.planner.weights import (
    Shape,
    attention_parts,
    attentions,
    feed_forward_parts,
    is_tied,
    norm_part,
    read_shape,
    vocabulary_parts,
)

STATE_KINDS = ("linear_attention", "mamba", "recurrent", "chunked_attention")


def read_config(
    config: Mapping[str, Any], *, dtype: str = "auto", where: str = "config.json"
) -> Model:
    """The model that a config.json describes; ConfigError where sizes are missing.

    A family that is not known is counted as a Llama, and `doubts` says so.
    """
    whole = Fields(config, where)
    fields = whole.text_model()
    name = fields.text("model_type") or whole.text("model_type") or "unknown"
    name = name.removesuffix("_text")
    family = FAMILIES.get(name, LLAMA)
    if fields is not whole:
        fields = fields.with_defaults(DEFAULTS.get(name, {}))
    shape = read_shape(fields, name)
    parts = [
        *vocabulary_parts(fields, family, shape),
        *attention_parts(fields, family, shape),
        *feed_forward_parts(fields, family, shape),
        norm_part(family, shape, _num_norms(fields, name, family)),
        *vision_parts(whole, shape.hidden),
    ]
    quantization = read_quantization(whole) or read_quantization(fields)
    layers = attentions(fields, shape, windows(fields, family))
    return Model(
        family=name,
        parts=tuple(part for part in _adjusted(parts, name, fields, shape) if part.num_parameters),
        layers=tuple(layers),
        num_heads=shape.num_heads,
        num_kv_heads=1 if layers[0].is_latent else shape.num_kv_heads,
        hidden_size=shape.hidden,
        intermediate_size=_widest(fields, shape),
        shard_sizes=_shard_sizes(fields, shape),
        vocab_size=shape.vocab,
        max_positions=_max_positions(fields, name),
        dtype=dtype if dtype != "auto" else _own_dtype(whole, fields),
        quantization=quantization,
        is_tied=is_tied(fields, family),
        doubts=tuple(_doubts(fields, name, quantization)),
    )


def _max_positions(fields: Fields, name: str) -> int:
    """The context that vLLM takes unasked (config/model.py, _get_and_verify_max_len): stretched by
    a plain factor, and without the stretch of LongRoPE."""
    positions = fields.size("max_position_embeddings", 2048)
    scaling = fields.inner("rope_parameters") or fields.inner("rope_scaling")
    if scaling is None:
        return positions
    kind = scaling.text("rope_type") or scaling.text("type")
    if kind == "longrope":
        return fields.count("original_max_position_embeddings") or positions
    if kind in ("linear", "dynamic") and name != "gemma3":
        return int(positions * scaling.factor("factor"))
    return positions


def _own_dtype(whole: Fields, fields: Fields) -> str:
    """The dtype an engine takes unasked: vLLM makes float32 weights float16 or bfloat16."""
    own = whole.text("torch_dtype") or fields.text("torch_dtype") or "float16"
    own = own.removeprefix("torch.")
    return "bfloat16" if own in ("float32", "float") else own


def _num_norms(fields: Fields, name: str, family: Family) -> int:
    if name == "falcon":
        has_two = fields.flag("new_decoder_architecture") or not fields.flag("parallel_attn", True)
        return 2 if has_two else 1
    return family.num_norms


def _adjusted(parts: list[Part], name: str, fields: Fields, shape: Shape) -> list[Part]:
    """Single numbers of one family: OPT-350M has no last norm, its norms stand behind."""
    if name == "opt" and not fields.flag("do_layer_norm_before", True):
        return [*parts, Part("no last norm", -2 * shape.hidden, Split.WHOLE)]
    return parts


def _widest(fields: Fields, shape: Shape) -> int:
    """The feed-forward width that one token goes through: its experts together."""
    if not fields.count("num_experts"):
        return shape.intermediate
    active = fields.count("num_experts_per_tok") or 1
    return active * shape.expert_width + shape.shared_width


def _shard_sizes(fields: Fields, shape: Shape) -> tuple[int, ...]:
    """Widths that tensor parallelism divides."""
    if not fields.count("num_experts"):
        return (shape.intermediate,)
    width = shape.expert_width
    return tuple(dict.fromkeys((width, fields.count("shared_expert_intermediate_size") or width)))


def _doubts(fields: Fields, name: str, quantization: Quantization | None) -> list[str]:
    doubts = []
    if name not in FAMILIES:
        doubts.append(f"model_type {name!r} is not known to the planner; it is counted as a Llama")
    if quantization is not None and quantization.method not in METHODS:
        doubts.append(
            f"quantisation {quantization.method!r} is not known to the planner; its weights are "
            "counted with 8 bits"
        )
    kinds = fields.get("layer_types")
    others = {kind for kind in kinds if kind in STATE_KINDS} if isinstance(kinds, list) else set()
    if others or fields.get("linear_num_value_heads"):
        doubts.append(
            "some layers keep a state instead of keys and values; they are counted as attention, "
            "so the KV cache is smaller than said"
        )
    return doubts
