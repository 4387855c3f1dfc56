"""The nearest known name for a mistyped one (pure; any process)."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

MAX_LENGTH = 60  # longer is no typing error, and comparing takes the square of it


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" or nothing, for the middle of an error sentence."""
    found = nearest(name, known)
    return f" (did you mean {found!r}?)" if found else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """The nearest one, or "" if none is near."""
    if len(name) > MAX_LENGTH:
        return ""
    return next(iter(get_close_matches(name, list(known), n=1, cutoff=0.6)), "")
