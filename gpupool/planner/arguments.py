"""What the arguments after -- mean for a plan: vLLM's own that change its memory. Pure.

vLLM's parser says what is right; this one only reads, and tells when it cannot judge.
"""

from __future__ import annotations

import re
from argparse import ArgumentError, ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass

from gpupool.planner.dtypes import FLOAT_BYTES, KV_BYTES
from gpupool.planner.fit import MAX_TOKENS, UTILIZATION, Ask

NUMBER = re.compile(r"^(\d+(?:\.\d+)?)([kKmM]?)$")
UNITS = {"": 1, "k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2}
READ = (
    "--max-model-len", "--max-num-seqs", "--max-num-batched-tokens", "--dtype",
    "--kv-cache-dtype", "--quantization", "--gpu-memory-utilization",
    "--device-memory-utilization", "--enforce-eager",
)  # fmt: skip
"""Arguments that the planner takes into account."""

UNCLEAR = (
    "--config-format", "--convert", "--cpu-offload-gb", "--cpu-offload-params",
    "--data-parallel-size", "--decode-context-parallel-size",
    "--disable-hybrid-kv-cache-manager", "--disable-sliding-window", "--download-dir",
    "--enable-eplb", "--enable-expert-parallel", "--enable-lora", "--hf-config-path",
    "--hf-overrides", "--kv-cache-dtype-skip-layers", "--kv-cache-memory-bytes",
    "--language-model-only", "--load-format", "--model-class-overrides", "--model-impl",
    "--num-gpu-blocks-override", "--offload-backend", "--offload-group-size",
    "--offload-num-in-group", "--offload-params", "--pipeline-parallel-size",
    "--prefill-context-parallel-size", "--quantization-config", "--revision", "--runner",
    "--spec-method", "--spec-model", "--spec-tokens", "--speculative-config", "-dc", "-dcp",
    "-dp", "-ep", "-pcp", "-pp", "-sc",
)  # fmt: skip
"""Arguments after which the planner's numbers are not those of the engine."""


@dataclass(frozen=True, slots=True)
class Given:
    """The arguments after --, as far as they matter here."""

    ask: Ask
    unclear: str | None = None  # an argument that the planner cannot take into account


def read_arguments(given: Sequence[str]) -> Given:
    """Never fails: what is wrong is for the engine's own parser to say."""
    words = [_hyphened(word) for word in given]
    for word in words:
        name = word.partition("=")[0].partition(".")[0]
        if name in UNCLEAR or (name not in READ and _abbreviates(name)):
            return Given(Ask(), unclear=name)
    try:
        found, _ = _parser().parse_known_args(words)
        return Given(_ask(found))
    except (ArgumentError, ValueError) as error:
        return Given(Ask(), unclear=" ".join(str(error).split()))


def _hyphened(word: str) -> str:
    """vLLM takes both spellings, in either case of the underscore."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _abbreviates(name: str) -> bool:
    """vLLM's parser takes the beginning of a name for the name."""
    is_name = name.startswith("--") and len(name) > len("--")
    return is_name and any(full.startswith(name) for full in (*READ, *UNCLEAR))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("max-model-len", "max-num-seqs", "max-num-batched-tokens"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--quantization", "-q")
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument(
        *("--gpu-memory-utilization", "--device-memory-utilization"),
        type=float,
        default=UTILIZATION,
    )
    return parser


def _ask(found: Namespace) -> Ask:
    if found.kv_cache_dtype not in KV_BYTES:
        raise ValueError(f"--kv-cache-dtype {found.kv_cache_dtype}")
    if found.dtype not in ("auto", *FLOAT_BYTES):
        raise ValueError(f"--dtype {found.dtype}")
    if not 0 < found.gpu_memory_utilization <= 1:
        raise ValueError(f"--gpu-memory-utilization {found.gpu_memory_utilization}")
    return Ask(
        max_model_len=_number(found.max_model_len),
        dtype=found.dtype,
        kv_cache_dtype=found.kv_cache_dtype,
        gpu_memory_utilization=found.gpu_memory_utilization,
        max_num_seqs=_number(found.max_num_seqs),
        max_num_batched_tokens=_number(found.max_num_batched_tokens),
        is_eager=found.enforce_eager,
        quantization=found.quantization,
    )


def _number(text: str | None) -> int | None:
    """As vLLM reads it: 8192, 8k, 8K. What fits by itself (auto, -1) is not certain to fail."""
    if text is None:
        return None
    match = NUMBER.match(text)
    number = float(match[1]) * UNITS[match[2]] if match else 0
    if not 1 <= number <= MAX_TOKENS:
        raise ValueError(f"{text[:40]!r} is not a plain number")
    return int(number)
