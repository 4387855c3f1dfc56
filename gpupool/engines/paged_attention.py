"""Attention of a batch on the CPU, sequence by sequence (worker process, transformers' thread).

transformers multiplies all queries of a step with all keys of all its sequences and masks what
does not belong together. Without a flash kernel that is most of the work: at 32 sequences of
256 tokens it took 10.3 ms a layer where this takes a fraction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def install() -> None:
    """Replace transformers' "sdpa", for the whole process, by one that cuts steps apart."""
    from transformers import AttentionInterface
    from transformers.generation.continuous_batching.cache import PagedAttentionCache
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        scaling: float | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Of a layer. Anything but a step of the batch is the library's."""
        if not isinstance(cache, PagedAttentionCache) or "position_bias" in kwargs:
            output: tuple[torch.Tensor, None] = sdpa_attention_forward(
                module, query, key, value, attention_mask, scaling=scaling, cache=cache, **kwargs
            )
            return output
        key, value = cache.update(
            key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=kwargs
        )
        ends = (kwargs["cu_seq_lens_q"].tolist(), kwargs["cu_seq_lens_k"].tolist())
        return _attend_each(query, key, value, attention_mask, ends, scaling), None

    AttentionInterface.register("sdpa", attend)


def _attend_each(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    ends: tuple[list[int], list[int]],
    scaling: float | None,
) -> torch.Tensor:
    """[1, heads, tokens, width] -> [1, tokens, heads, width]; ends are cumulative lengths."""
    output = query.new_empty(query.shape[2], *query.shape[1::2])
    query_ends, key_ends = ends
    for number in range(len(query_ends) - 1):
        rows = slice(query_ends[number], query_ends[number + 1])
        columns = slice(key_ends[number], key_ends[number + 1])
        block = None if mask is None else mask[..., rows, columns]
        own_key, own_value = key[:, :, columns], value[:, :, columns]
        attended = _attend_one(query[:, :, rows], own_key, own_value, block, scaling)
        output[rows] = attended[0].transpose(0, 1)
    return output[None]


def _attend_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    from torch.nn.functional import scaled_dot_product_attention

    if query.shape[2] > 1:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True
        )
    # The one query of each head that shares keys becomes a row: the keys need no copies, which
    # is up to seven times as fast in 16 bits. A last token sees every key that was read.
    rows = query.view(1, key.shape[1], -1, query.shape[3])
    return scaled_dot_product_attention(rows, key, value, scale=scaling).view(query.shape)
