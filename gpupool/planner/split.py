"""Which numbers of GPUs can share one copy of a model, and why others cannot. Pure.

Source: vLLM 0.32, config/model.py (verify_with_parallel_config), layers/linear.py
(QKVParallelLinear), layers/vocab_parallel_embedding.py, quantisation methods' create_weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from gpupool.planner.dtypes import dtype_bytes
from gpupool.planner.model import Model, Part, Split

VOCABULARY_PADDING = 64
MAX_GPUS = 64


def refusal(model: Model, num_gpus: int) -> str | None:
    """Why so many GPUs cannot share the model, or None if they can."""
    if model.is_layered:
        too_many = f"{model.num_layers} layers cannot be on {num_gpus} GPUs"
        return too_many if num_gpus > model.num_layers else None
    if model.num_heads % num_gpus:
        return f"{model.num_heads} attention heads are not divisible by {num_gpus}"
    kv_heads = model.num_kv_heads
    # Fewer heads than GPUs are copied, all equally often.
    if kv_heads % num_gpus and num_gpus % kv_heads:
        return f"{kv_heads} KV heads can neither be divided by {num_gpus} nor copied to them evenly"
    if padded_vocabulary(model) % num_gpus:
        return f"a vocabulary of {padded_vocabulary(model)} rows is not divisible by {num_gpus}"
    for width in model.shard_sizes:
        if width % num_gpus:
            return f"a feed-forward width of {width} is not divisible by {num_gpus}"
        if (group := _group_size(model)) and width // num_gpus % group:
            method = model.quantization.method if model.quantization else ""
            return (
                f"a feed-forward width of {width} gives each of {num_gpus} GPUs "
                f"{width // num_gpus}, which is not a multiple of the {method} group of {group}"
            )
    return None


def sizes(model: Model, max_gpus: int = MAX_GPUS) -> Iterator[int]:
    """Every possible number of GPUs for one worker."""
    return (count for count in range(1, max_gpus + 1) if refusal(model, count) is None)


def padded_vocabulary(model: Model) -> int:
    """Rows of the embedding as vLLM makes it."""
    return ceil(model.vocab_size / VOCABULARY_PADDING) * VOCABULARY_PADDING


def weight_bytes(model: Model, num_gpus: int = 1) -> int:
    """Bytes of the weights on each of so many GPUs, by the configuration alone."""
    return ceil(
        sum(_part_bytes(model, part) * _share(model, part, num_gpus) for part in model.parts)
    )


def shared_fraction(model: Model, num_gpus: int) -> float:
    """What each of so many GPUs holds of one whole copy: more than 1/n, as some is on all."""
    return weight_bytes(model, num_gpus) / weight_bytes(model)


def _part_bytes(model: Model, part: Part) -> float:
    quantization = model.quantization
    if quantization is None or not part.is_linear:
        return part.num_parameters * dtype_bytes(model.dtype)
    if quantization.method == "mxfp4" and "expert" not in part.name:
        return part.num_parameters * dtype_bytes(model.dtype)  # only the experts are packed
    return part.num_parameters * quantization.bits / 8


def _share(model: Model, part: Part, num_gpus: int) -> float:
    if model.is_layered:
        return model.layer_share(num_gpus)
    if part.split is Split.WHOLE:
        return 1
    if part.split is Split.KV:
        return 1 / min(num_gpus, model.num_kv_heads)
    if part.split is Split.VOCABULARY:
        return padded_vocabulary(model) / model.vocab_size / num_gpus
    return 1 / num_gpus


def _group_size(model: Model) -> int | None:
    """The group that a row-parallel matrix must not cut; None where padding takes care of it."""
    quantization = model.quantization
    if quantization is None or quantization.method in ("mxfp4", "compressed_tensors"):
        return None
    return quantization.group_size
