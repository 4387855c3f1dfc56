"""Which request runs in which of llama.cpp's slots (worker process; on the engine's loop only).

A slot keeps the last sequence it computed, and a prompt that begins like it is not computed
again. llama.cpp would choose by itself, but then a request that works its way along a prompt can
lose its slot to another one between two steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count


@dataclass(slots=True)
class Slot:
    """One of llama.cpp's slots; `tokens` is what its cache holds."""

    number: int
    tokens: tuple[int, ...] = ()
    last_used: int = field(default=-1)


class SlotTable:
    """Hands slots out, first come first served; the best one of the free ones."""

    def __init__(self, num_slots: int) -> None:
        self._turn = asyncio.Semaphore(num_slots)
        self._free = [Slot(number) for number in range(num_slots)]
        self._clock = count()

    @asynccontextmanager
    async def hold(self, prompt: Sequence[int]) -> AsyncIterator[Slot]:
        """Wait for a slot and keep it; cancelling the task stops the waiting at once."""
        async with self._turn:
            tokens = tuple(prompt)
            # Without anything in common: the one unused longest, whose cache is worth least.
            slot = max(
                self._free,
                key=lambda free: (num_common(free.tokens, tokens), -free.last_used),
            )
            self._free.remove(slot)
            slot.tokens = tokens
            try:
                yield slot
            finally:
                slot.last_used = next(self._clock)
                self._free.append(slot)


def num_common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """How many first tokens are the same; by halving, as comparing tuples is fast."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
