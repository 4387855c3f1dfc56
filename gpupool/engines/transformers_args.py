"""What may follow `--` for the transformers engine, parsed (pure; any process).

Everything the pool itself decides (model, address, keys, GPUs) is refused here by the name of
the flag that decides it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from gpupool.errors import ConfigError
from gpupool.nearest import nearest_hint

DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTENTIONS = ("auto", "sdpa", "flash_attention_2", "flash_attention_3")

OURS = {
    "--host": "--host before the --",
    "--port": "--port before the --",
    "--api-key": "--api_key before the --",
    "--trust-remote-code": "--trust_remote_code before the --",
    "--model": "--model_name before the --",
    "--device-map": "--per_proc_gpus before the --; the model is spread over those GPUs",
    "--device": "--per_proc_gpus before the --; without GPUs the CPU is used",
    "--tensor-parallel-size": "--per_proc_gpus before the --; layers are spread over those GPUs",
}


@dataclass(frozen=True, slots=True)
class TransformersArgs:
    """The engine's own arguments; None means: chosen from the model and the machine."""

    dtype: str = "auto"
    attn_implementation: str = "auto"
    revision: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_batch_tokens: int | None = None
    num_blocks: int | None = None
    cache_memory_fraction: float = 0.7


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of printing a usage and leaving the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(
            f"arguments after --: {message}; the transformers engine takes {_known()}"
        )


def parse_engine_args(words: Sequence[str]) -> TransformersArgs:
    """The arguments after `--`; ConfigError names the first that cannot be."""
    parser = _make_parser()
    _refuse_ours(words)
    values, unknown = parser.parse_known_args(list(words))
    if unknown:
        hint = nearest_hint(unknown[0].partition("=")[0], _option_names(parser))
        raise ConfigError(
            f"arguments after --: {unknown[0]!r} is not one of the transformers engine{hint}; "
            f"it takes {_known()}"
        )
    return TransformersArgs(**vars(values))


def _make_parser() -> _Parser:
    parser = _Parser(prog="--", add_help=False, allow_abbrev=False)
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--attn-implementation", choices=ATTENTIONS, default="auto")
    parser.add_argument("--revision", type=_text)
    parser.add_argument("--max-model-len", type=_count)
    parser.add_argument("--max-num-seqs", type=_count)
    parser.add_argument("--max-batch-tokens", type=_count)
    parser.add_argument("--num-blocks", type=_count)
    parser.add_argument("--cache-memory-fraction", type=_fraction, default=0.7)
    return parser


def _refuse_ours(words: Sequence[str]) -> None:
    for word in words:
        name = word.partition("=")[0].replace("_", "-")
        if name in OURS:
            raise ConfigError(f"{word!r} may not follow --; use {OURS[name]}")


def _option_names(parser: argparse.ArgumentParser) -> list[str]:
    return [name for action in parser._actions for name in action.option_strings]


def _known() -> str:
    return ", ".join(_option_names(_make_parser()))


def _text(word: str) -> str:
    if not word:
        raise argparse.ArgumentTypeError("is empty; give a branch, tag or commit")
    return word


def _count(word: str) -> int:
    if not word.isascii() or not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"is {word!r}; it must be a whole number of at least 1")
    return int(word)


def _fraction(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"is {word!r}; it must be above 0, up to 1")
    return value
