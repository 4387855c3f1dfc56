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

Key = tuple[int, ...] | bytes
"""What a sequence begins with: its tokens, or the text they are made of where only llama.cpp,
which renders the template, knows the tokens. Keys of two kinds have nothing in common."""


@dataclass(slots=True)
class Slot:
    """One of llama.cpp's slots; `key` is what its cache holds."""

    number: int
    key: Key = ()
    last_used: int = field(default=-1)


class SlotTable:
    """Hands slots out, first come first served; the best one of the free ones."""

    def __init__(self, num_slots: int) -> None:
        self._turn = asyncio.Semaphore(num_slots)
        self._free = [Slot(number) for number in range(num_slots)]
        self._clock = count()

    @asynccontextmanager
    async def hold(self, prompt: Sequence[int] | bytes) -> AsyncIterator[Slot]:
        """Wait for a slot and keep it; cancelling the task stops the waiting at once."""
        async with self._turn:
            key = prompt if isinstance(prompt, bytes) else tuple(prompt)
            slot = max(self._free, key=lambda free: (_gain(free.key, key), -free.last_used))
            self._free.remove(slot)
            slot.key = key
            try:
                yield slot
            finally:
                slot.last_used = next(self._clock)
                self._free.append(slot)


def _gain(cached: Key, key: Key) -> int:
    """How much of a cache a prompt can use, if it is not the smaller part of it: all prompts of a
    chat begin alike, and none of them is to throw out a long conversation while a slot is there
    that was unused longer."""
    common = num_common(cached, key)
    return common if 2 * common >= len(cached) else 0


def num_common(a: Key, b: Key) -> int:
    """How many first items are the same; by halving, as comparing slices is fast."""
    if type(a) is not type(b):
        return 0
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
