"""Which paths of the OpenAI API, and of vLLM's beside it, there are (pure; worker process).

Everything that is decided about a request (key, admission, checks, metrics) is decided on the
route that was found here, never on a prefix of the path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "chat", "completion", "responses", "messages", "embedding", "rerank", "pooling", "tokens"
]


@dataclass(frozen=True, slots=True)
class Route:
    """One path that takes POST. `kind` says how its body is checked; `list_field` names the
    field whose items are independent of each other, and may run on different workers."""

    path: str
    kind: Kind
    list_field: str | None = None


ROUTES: dict[str, Route] = {
    route.path: route
    for route in (
        Route("/v1/chat/completions", "chat"),
        Route("/v1/completions", "completion", "prompt"),
        Route("/v1/responses", "responses"),
        Route("/v1/messages", "messages"),
        Route("/v1/messages/count_tokens", "messages"),
        Route("/v1/embeddings", "embedding", "input"),
        Route("/v1/score", "pooling"),
        Route("/score", "pooling"),
        Route("/v1/rerank", "rerank", "documents"),
        Route("/v2/rerank", "rerank", "documents"),
        Route("/rerank", "rerank", "documents"),
        Route("/pooling", "pooling"),
        Route("/classify", "pooling"),
        Route("/tokenize", "tokens"),
        Route("/detokenize", "tokens"),
    )
}

MODELS = "/v1/models"


def find(path: str) -> Route | None:
    """By the exact spelling: no other is a route of any engine."""
    return ROUTES.get(path)


def is_models(path: str) -> bool:
    """The list of models, or one of it."""
    return path == MODELS or path.startswith(MODELS + "/")


def is_ours(path: str) -> bool:
    """Whether the path is answered by this API and not by the Flask application."""
    return path in ROUTES or path.startswith("/v1/")
