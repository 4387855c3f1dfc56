"""What a pool's llama.cpp is there for: texts, vectors or ranks (pure; preflight, worker)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpupool.errors import ConfigError
from gpupool.gguf_file import GgufModel

RANK = "LLAMA_POOLING_TYPE_RANK"
HEAD = "cls"
"""What the names of the tensors begin with that make a rank out of a model's last layer."""


@dataclass(frozen=True, slots=True)
class Uses:
    """What is asked of one model."""

    generates: bool
    embeds: bool
    ranks: bool


def uses_of(args: Mapping[str, Any], model: GgufModel) -> Uses:
    """By the parsed arguments; ConfigError for a model that cannot do what it is asked."""
    ranks = args.get("pooling_type") == RANK
    embeds = bool(args.get("embedding")) and not ranks
    if ranks and not model.has_tensors(HEAD):
        raise ConfigError(
            f"engine argument --reranking: {str(model.path)!r} has nothing to rank with (no "
            f"tensor {HEAD}.*), so its scores would mean nothing; use a reranker's GGUF, and one "
            "whose conversion kept its head"
        )
    is_encoder = model.metadata.get(f"{model.architecture}.attention.causal") is False
    if is_encoder and not ranks and not embeds:
        raise ConfigError(
            f"{str(model.path)!r} is an encoder ({model.architecture}): it generates nothing; "
            "start the pool with the engine argument --embedding or --reranking"
        )
    return Uses(generates=not ranks and not is_encoder, embeds=embeds, ranks=ranks)
