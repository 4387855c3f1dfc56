"""What an API key may use, and whether it has: the arithmetic of its limits (pure).

The minute slides in steps: tokens count in the step in which their request ended and in the twelve
after it, which is for 60 to 65 seconds. So no request begins within a minute in which its key had
used its tokens up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from gpupool.errors import KeyLimited

STEP_S = 5.0
NUM_STEPS = 13
"""The one that runs, and those of a whole minute before it."""
RETRY_AFTER_S = 1
"""For a limit that ends with a request, which may be at any moment."""

_TOKEN_BITS = 32
_MAX_TOKENS = (1 << _TOKEN_BITS) - 1


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """Of every key alike; 0: no limit."""

    concurrency: int = 0
    tokens_per_minute: int = 0

    def __bool__(self) -> bool:
        return bool(self.concurrency or self.tokens_per_minute)


def index_at(now: float) -> int:
    """Which of the NUM_STEPS words of a minute the running step has."""
    return _step_at(now) % NUM_STEPS


def added(word: int, tokens: int, now: float) -> int:
    """The running step's word with more tokens. Step and tokens share one word, so that who reads
    it meanwhile sees both or neither; what an earlier step has left in it is gone."""
    step = _step_at(now)
    before = word & _MAX_TOKENS if word >> _TOKEN_BITS == step else 0
    return step << _TOKEN_BITS | min(before + tokens, _MAX_TOKENS)


def spent(words: Iterable[int], now: float) -> int:
    """The tokens of the minute that ends now."""
    return sum(_tokens_by_step(words, now).values())


def opens_in_s(words: Iterable[int], limit: int, now: float) -> float:
    """How long until fewer tokens than the limit count, if none are added; 0: they do."""
    by_step = _tokens_by_step(words, now)
    left = sum(by_step.values())
    opens_at = now
    for step in sorted(by_step):
        if left < limit:
            break
        left -= by_step[step]
        opens_at = (step + NUM_STEPS) * STEP_S
    return opens_at - now


def too_many(limits: KeyLimits, in_flight: int) -> KeyLimited | None:
    """Why a request cannot be one more beside those of its key, or None."""
    if not limits.concurrency or in_flight < limits.concurrency:
        return None
    return KeyLimited(
        f"this API key has {in_flight} requests in flight or waiting, and may have "
        f"{limits.concurrency} (--key_concurrency); wait for one of them to end",
        retry_after_s=RETRY_AFTER_S,
    )


def used_up(limits: KeyLimits, words: list[int], now: float) -> KeyLimited | None:
    """Why the key's minute leaves nothing for a request, or None."""
    tokens = spent(words, now)
    if not limits.tokens_per_minute or tokens < limits.tokens_per_minute:
        return None
    wait_s = max(1, math.ceil(opens_in_s(words, limits.tokens_per_minute, now)))
    return KeyLimited(
        f"this API key has used {tokens} tokens within a minute, and may use "
        f"{limits.tokens_per_minute} (--key_tokens_per_minute); try again in {wait_s} s",
        retry_after_s=wait_s,
    )


def _step_at(now: float) -> int:
    return int(now // STEP_S)


def _tokens_by_step(words: Iterable[int], now: float) -> dict[int, int]:
    """Of the steps that count; several words of one step are those of several workers."""
    oldest = _step_at(now) - NUM_STEPS + 1
    found: dict[int, int] = {}
    for word in words:
        step = word >> _TOKEN_BITS
        if step >= oldest:
            found[step] = found.get(step, 0) + (word & _MAX_TOKENS)
    return found
