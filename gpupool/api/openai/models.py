"""GET /v1/models (pure; worker process)."""

from __future__ import annotations

from typing import Any

from gpupool.api.openai.checks import Able, check_model_name
from gpupool.api.openai.routes import MODELS
from gpupool.engines.base import UNKNOWN_CONTEXT

OWNER = "gpupool"


def describe_models(path: str, able: Able, since: int) -> dict[str, Any]:
    """The list, or one of it; NotFound for a name that is not served."""
    if path == MODELS:
        data = [_describe(name, able, since) for name in able.model_names]
        return {"object": "list", "data": data}
    name = path.removeprefix(MODELS + "/")
    check_model_name(name, able)
    return _describe(name, able, since)


def _describe(name: str, able: Able, since: int) -> dict[str, Any]:
    """OpenAI's fields, and the length of the context as vLLM names it."""
    context = able.model.context_tokens
    return {
        "id": name,
        "object": "model",
        "created": since,
        "owned_by": OWNER,
        "root": able.model_names[0],
        "parent": None,
        "max_model_len": None if context == UNKNOWN_CONTEXT else context,
    }
