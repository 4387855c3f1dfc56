"""The work that every contender does, and the one set of engine arguments (any process).

Imports nothing heavy: the driver, which is also the load client, reads it.
"""

from __future__ import annotations

from typing import Any

TOKENS_EACH = 64

ENGINE: dict[str, Any] = {
    "enforce_eager": True,
    "dtype": "bfloat16",
    "max_model_len": 512,
    "max_num_seqs": 64,
    # vLLM's own default depends on who asks: its server, or LLM.
    "max_num_batched_tokens": 2048,
    "kv_cache_memory_bytes": 256 << 20,
    "enable_prefix_caching": False,
}
"""By vLLM's Python names; `engine_flags` writes them for a command line."""

SAMPLING: dict[str, Any] = {"max_tokens": TOKENS_EACH, "temperature": 0, "ignore_eos": True}

PLACES = ("a harbour", "a mountain hut", "an old library", "a night train", "a small bakery")
TOPICS = ("how bread rises", "why the sea is salt", "who built the bridge", "what the owl saw")


def engine_flags() -> list[str]:
    """ENGINE as `vllm serve` and the pool take it."""
    flags: list[str] = []
    for name, value in ENGINE.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{option}" if value else f"--no-{option}")
        else:
            flags += [f"--{option}", str(value)]
    return flags


def make_prompts(round_index: int, count: int) -> list[str]:
    """Prompts of about 30 tokens, no two alike, and new ones in every round."""
    return [
        f"Letter {index} of bundle {round_index}, written in {PLACES[index % len(PLACES)]}. "
        f"Dear friend, today I want to tell you {TOPICS[index % len(TOPICS)]}:"
        for index in range(count)
    ]
