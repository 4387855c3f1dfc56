"""A reranker of a few thousand random weights, as a GGUF that llama.cpp ranks with (any process).

A BERT as the usual rerankers are: an encoder with word pieces and a head that gives one score.
gguf and numpy are imported only when it is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf import GGUFWriter

WORDS = ("the", "a", "cat", "dog", "sat", "on", "mat", "paris", "capital", "of", "france", "what")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORD_START = "\N{LOWER ONE EIGHTH BLOCK}"
CONTEXT_TOKENS = 256
WIDTH, HEADS, LAYERS, INNER = 32, 4, 2, 64


def write_ranker(path: Path, *, has_head: bool = True) -> Path:
    """The model; without its head, as careless conversions leave it, it only embeds."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, arch="bert")
    tokens = list(dict.fromkeys((*SPECIAL, *_pieces())))
    _write_metadata(writer, tokens)
    _write_weights(writer, len(tokens), has_head=has_head)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _pieces() -> Iterator[str]:
    yield from LETTERS
    yield from (WORD_START + text for text in (*WORDS, *LETTERS, *".,?!"))


def _write_metadata(writer: GGUFWriter, tokens: list[str]) -> None:
    from gguf import LlamaFileType, TokenType

    writer.add_name("tiny ranker")
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    num_words = len(tokens) - len(SPECIAL)
    writer.add_token_types([TokenType.CONTROL] * len(SPECIAL) + [TokenType.NORMAL] * num_words)
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    writer.add_sep_token_id(3)
    writer.add_mask_token_id(4)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)


def _write_weights(writer: GGUFWriter, num_tokens: int, *, has_head: bool) -> None:
    import numpy as np

    random = np.random.default_rng(0)

    def weights(*shape: int) -> Any:
        return random.normal(0, 0.3, shape).astype(np.float32)

    def linear(name: str, num_out: int, num_in: int) -> None:
        writer.add_tensor(f"{name}.weight", weights(num_out, num_in))
        writer.add_tensor(f"{name}.bias", weights(num_out))

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(WIDTH, np.float32))

    writer.add_tensor("token_embd.weight", weights(num_tokens, WIDTH))
    writer.add_tensor("position_embd.weight", weights(CONTEXT_TOKENS, WIDTH))
    writer.add_tensor("token_types.weight", weights(2, WIDTH))
    norm("token_embd_norm")
    for layer in (f"blk.{number}." for number in range(LAYERS)):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            linear(layer + name, WIDTH, WIDTH)
        norm(f"{layer}attn_output_norm")
        linear(f"{layer}ffn_up", INNER, WIDTH)
        linear(f"{layer}ffn_down", WIDTH, INNER)
        norm(f"{layer}layer_output_norm")
    if has_head:
        linear("cls", WIDTH, WIDTH)
        linear("cls.output", 1, WIDTH)
