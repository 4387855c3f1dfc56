"""The HTTP routes, in the worker. They know `engines.base`, never a concrete engine."""

from __future__ import annotations

from urllib.parse import unquote

from gpupool.api.openai.routes import ROUTES, is_models
from gpupool.page import PATHS as PAGE_PATHS

CONTROL_PATHS = PAGE_PATHS | {"/livez", "/readyz", "/health", "/metrics", "/pool", "/"}
"""Answered at once, whatever the load. By these spellings only: the router knows others for the
same route, and a generation must not get at the threads that are kept for these."""


def waits_for_model(method: str, path: str) -> bool:
    """Whether a request is worth holding while the model loads."""
    return method == "POST" and (unquote(path) == "/infer" or path in ROUTES)


def tells_of_model(path: str) -> bool:
    """Whether only a worker that has a model can answer, and needs no slot for it."""
    return is_models(path) or path == "/openapi.json"


def may_be_refused(path: str) -> bool:
    """Whether a full room is an answer: OpenAI's clients try again, those of /infer take an error
    for the result, and wait."""
    return path in ROUTES
