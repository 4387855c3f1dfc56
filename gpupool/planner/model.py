"""What the planner knows of a model, as plain data. Pure; any process."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import ceil


class Split(Enum):
    """What tensor parallelism does with a part of the weights."""

    EVEN = "divided by all GPUs"
    KV = "divided by at most as many GPUs as there are KV heads"
    VOCABULARY = "divided by all GPUs, with rows added to a multiple of 64"
    WHOLE = "on every GPU"


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a model's weights, over all its layers."""

    name: str
    num_parameters: int
    split: Split
    is_linear: bool = False  # a matrix of the layers: what quantisation makes smaller


@dataclass(frozen=True, slots=True)
class Attention:
    """What one layer keeps of each token."""

    num_kv_heads: int
    key_size: int  # values of one head
    value_size: int  # 0: the values are in the key (latent attention)
    window: int | None = None  # tokens kept; None: all
    is_latent: bool = False  # MLA: one latent for all heads, whole on every GPU


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the matrices of the layers are stored."""

    method: str  # gptq, awq, fp8, bitsandbytes, mxfp4, gguf, ...
    bits: float  # of one weight, with its share of scales and zero points
    group_size: int | None = None  # input rows that share a scale: no GPU gets a part of one


@dataclass(frozen=True, slots=True)
class Model:
    """A model by its configuration."""

    family: str  # model_type
    parts: tuple[Part, ...]
    layers: tuple[Attention, ...]  # those with a KV cache
    num_heads: int
    num_kv_heads: int  # as tensor parallelism sees them; those of the attention otherwise
    hidden_size: int
    intermediate_size: int  # the widest feed-forward that one token goes through
    shard_sizes: tuple[int, ...]  # feed-forward widths that every GPU gets an equal part of
    vocab_size: int
    max_positions: int
    dtype: str  # of what is not quantised
    quantization: Quantization | None = None
    is_tied: bool = False  # the head is the embedding
    is_layered: bool = False  # each GPU has some of the layers (llama.cpp), not some of each
    doubts: tuple[str, ...] = ()  # what the configuration leaves open, as sentences

    @property
    def num_parameters(self) -> int:
        """All of them, tied ones once."""
        return sum(part.num_parameters for part in self.parts)

    def layer_share(self, num_gpus: int) -> float:
        """The share of the layers on the GPU that has the most of them."""
        return ceil(self.num_layers / num_gpus) / self.num_layers

    @property
    def num_layers(self) -> int:
        """Layers with a KV cache."""
        return len(self.layers)
