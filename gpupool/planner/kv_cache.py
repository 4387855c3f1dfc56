"""Bytes, tokens and requests of the KV cache on one GPU. Pure; any process.

Source: vLLM 0.32, v1/kv_cache_interface.py (page sizes, a window's blocks) and
v1/core/kv_cache_utils.py (groups of layers, the tokens that it logs).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from math import ceil

from gpupool.planner.model import Attention, Model

BLOCK_SIZE = 16
"""vLLM's own choice on GPUs for what has keys and values; 128 on the CPU."""


@dataclass(frozen=True)
class Cache:
    """The KV cache of one GPU of a worker."""

    model: Model
    value_bytes: float
    num_gpus: int = 1  # of the worker, all of them tensor parallel
    block_size: int = BLOCK_SIZE
    in_flight_tokens: int = 2048  # scheduled, so not given back yet by a sliding window

    def layer_bytes(self, layer: Attention) -> float:
        """Bytes of one token in one layer. Where there are more GPUs than KV heads, each GPU
        has one head, some of them the same; a latent is whole on every GPU."""
        if layer.is_latent or self.model.is_layered:
            heads = layer.num_kv_heads
        else:
            heads = max(1, layer.num_kv_heads // self.num_gpus)
        share = self.model.layer_share(self.num_gpus) if self.model.is_layered else 1
        return heads * (layer.key_size + layer.value_size) * self.value_bytes * share

    @property
    def token_bytes(self) -> float:
        """Bytes of one token in all layers, while it is in every window."""
        return sum(self.layer_bytes(layer) for layer in self.model.layers)

    @cached_property
    def block_bytes(self) -> float:
        """Bytes of one block: a group of layers shares its block ids."""
        page = max(self.layer_bytes(layer) for layer in self.model.layers) * self.block_size
        return page * self._group_size

    def blocks_per_request(self, length: int) -> int:
        """Blocks of one request of so many tokens."""
        return sum(
            self._layer_blocks(layer, length) * ceil(count / self._group_size)
            for layer, count in self._kinds.items()
        )

    def bytes_per_request(self, length: int) -> float:
        """Bytes of one request of so many tokens."""
        return self.blocks_per_request(length) * self.block_bytes

    def num_requests(self, num_bytes: float, length: int) -> float:
        """Requests of so many tokens that have room at once: what vLLM logs as concurrency."""
        num_blocks = int(max(num_bytes, 0) // self.block_bytes)
        return num_blocks / self.blocks_per_request(length)

    def num_tokens(self, num_bytes: float, length: int) -> int:
        """Tokens that have room, in requests of so many: what vLLM logs as cache size."""
        return int(self.num_requests(num_bytes, length) * length)

    def longest(self, num_bytes: float, limit: int) -> int:
        """The longest context of which one request has room, in whole blocks."""
        low, high = 0, limit // self.block_size
        while low < high:
            middle = (low + high + 1) // 2
            if self.num_requests(num_bytes, middle * self.block_size) >= 1:
                low = middle
            else:
                high = middle - 1
        if low == limit // self.block_size and self.num_requests(num_bytes, limit) >= 1:
            return limit
        return low * self.block_size

    @cached_property
    def _kinds(self) -> Counter[Attention]:
        return Counter(self.model.layers)

    @cached_property
    def _group_size(self) -> int:
        """Layers of a group: as many as the rarest kind has, unless the others have hardly more."""
        counts = self._kinds.values()
        return max(counts) if max(counts) < min(counts) * 1.5 else min(counts)

    def _layer_blocks(self, layer: Attention, length: int) -> int:
        if layer.window is None:
            return ceil(length / self.block_size)
        kept = min(layer.window - 1 + self.in_flight_tokens, length)
        # One more: a window need not begin where a block does.
        return ceil(kept / self.block_size) + 1
