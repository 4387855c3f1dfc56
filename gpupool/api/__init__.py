"""The HTTP routes, in the worker. They know `engines.base`, never a concrete engine."""

from __future__ import annotations


def is_generation(path: str) -> bool:
    """Whether a request for this path waits for a model; all others are answered at once."""
    return path == "/infer" or path.startswith("/v1/")
