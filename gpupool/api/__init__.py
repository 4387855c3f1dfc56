"""The HTTP routes, in the worker. They know `engines.base`, never a concrete engine."""

from __future__ import annotations

CONTROL_PATHS = frozenset({"/livez", "/readyz", "/health", "/metrics", "/pool", "/"})
"""Answered at once, whatever the load. By these spellings only: the router knows others for the
same route, and a generation must not get at the threads that are kept for these."""


def waits_for_model(method: str, path: str) -> bool:
    """Whether a request is worth holding while the model loads."""
    return method == "POST" and (path == "/infer" or path.startswith("/v1/"))
