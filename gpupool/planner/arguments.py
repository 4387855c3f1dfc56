"""What the arguments after -- mean for a plan: vLLM's own that change its memory. Pure.

vLLM's parser says what is right; this one only reads, and tells when it cannot judge.
"""

from __future__ import annotations

import re
from argparse import ArgumentError, ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass

from gpupool.planner.dtypes import FLOAT_BYTES, KV_BYTES
from gpupool.planner.fit import UTILIZATION, Ask

NUMBER = re.compile(r"^(\d+(?:\.\d+)?)([kKmM]?)$")
UNITS = {"": 1, "k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2}
UNCLEAR = (
    "config-format",
    "cpu-offload-gb",
    "data-parallel-size",
    "decode-context-parallel-size",
    "enable-lora",
    "enable-expert-parallel",
    "hf-config-path",
    "hf-overrides",
    "kv-cache-memory-bytes",
    "load-format",
    "num-gpu-blocks-override",
    "offload-backend",
    "pipeline-parallel-size",
    "prefill-context-parallel-size",
    "revision",
    "speculative-config",
    "download-dir",
)
"""Arguments after which the planner's numbers are not those of the engine."""


@dataclass(frozen=True, slots=True)
class Given:
    """The arguments after --, as far as they matter here."""

    ask: Ask
    quantization: str | None = None
    unclear: str | None = None  # an argument that the planner cannot take into account


def read_arguments(given: Sequence[str]) -> Given:
    """Never fails: what is wrong is for the engine's own parser to say."""
    words = [_hyphened(word) for word in given]
    for word in words:
        name = word.partition("=")[0].removeprefix("--").partition(".")[0]
        if word.startswith("--") and name in UNCLEAR:
            return Given(Ask(), unclear=f"--{name}")
    try:
        found, _ = _parser().parse_known_args(words)
        return Given(_ask(found), found.quantization)
    except (ArgumentError, ValueError) as error:
        return Given(Ask(), unclear=" ".join(str(error).split()))


def _hyphened(word: str) -> str:
    """vLLM takes both spellings, in either case of the underscore."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _parser() -> ArgumentParser:
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("max-model-len", "max-num-seqs", "max-num-batched-tokens"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--quantization", "-q")
    parser.add_argument("--gpu-memory-utilization", type=float, default=UTILIZATION)
    parser.add_argument("--enforce-eager", action="store_true")
    return parser


def _ask(found: Namespace) -> Ask:
    if found.kv_cache_dtype not in KV_BYTES:
        raise ValueError(f"--kv-cache-dtype {found.kv_cache_dtype}")
    if found.dtype not in ("auto", *FLOAT_BYTES):
        raise ValueError(f"--dtype {found.dtype}")
    return Ask(
        max_model_len=_number(found.max_model_len),
        dtype=found.dtype,
        kv_cache_dtype=found.kv_cache_dtype,
        gpu_memory_utilization=found.gpu_memory_utilization,
        max_num_seqs=_number(found.max_num_seqs),
        max_num_batched_tokens=_number(found.max_num_batched_tokens),
        is_eager=found.enforce_eager,
    )


def _number(text: str | None) -> int | None:
    """As vLLM reads it: 8192, 8k, 8K. What fits by itself (auto, -1) is not certain to fail."""
    if text is None:
        return None
    match = NUMBER.match(text)
    if match is None or int(float(match[1]) * UNITS[match[2]]) < 1:
        raise ValueError(f"{text!r} is not a plain number")
    return int(float(match[1]) * UNITS[match[2]])
