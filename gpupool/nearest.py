"""The nearest known name for a mistyped one (pure; any process)."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

MAX_LENGTH = 60  # longer is no typing error, and comparing takes the square of it


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" or nothing, for the middle of an error sentence."""
    if len(name) > MAX_LENGTH:
        return ""
    matches = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
