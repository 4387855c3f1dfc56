"""Deadlines in the order of their insertion, which is their own order (pure)."""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")


def expired(deadlines: dict[K, float], now: float, *, everything: bool = False) -> list[K]:
    """The keys whose deadline has passed; all of them with everything."""
    found = []
    for key, deadline in deadlines.items():
        if deadline > now and not everything:
            break
        found.append(key)
    return found
