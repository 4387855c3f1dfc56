"""vLLM's own OpenAI application, mounted on the engine's client (worker, vLLM's event loop).

vLLM's launcher makes the same application for its own server. Imports vLLM only inside functions.
"""

from __future__ import annotations

import inspect
from argparse import Namespace
from collections.abc import Mapping
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

NAMED_LATER = frozenset({"request_id"})
"""Fields of vLLM's request bodies that only confuse a pool: a client's own ids may collide, and the
header X-Request-Id is the place for them."""


async def mount(client: Any, args: Namespace) -> Any:
    """The application, ready to be called; the engine has loaded its model."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    tasks = await client.get_supported_tasks()
    app = build_app(args, tasks, client.vllm_config.model_config)
    _tell_bad_formats(app)
    await init_app_state(client, app.state, args, tasks)
    # vLLM's error handler tells its server to end when the engine is dead; ours finds out itself.
    app.state.server = SimpleNamespace(should_exit=False)
    return app


def _tell_bad_formats(app: Any) -> None:
    """vLLM's engine compiles a format when the request is there already. Where it cannot, all that
    its API hears is that the generation failed, and it answers 500 to what is a bad request."""
    from fastapi import Request
    from fastapi.responses import JSONResponse
    from vllm.exceptions import GenerationError

    async def tell(request: Request, error: GenerationError) -> JSONResponse:
        field = restricting_field(request.state.body)
        if field is None or error.status_code != HTTPStatus.INTERNAL_SERVER_ERROR:
            content = {"message": str(error), "code": int(error.status_code)}
            return JSONResponse({"error": content}, error.status_code)
        message = (
            f"vLLM cannot generate by this {field}: it does not compile, or no text fits it "
            "(the server's log says what its compiler says)"
        )
        content = {"message": message, "param": field, "code": "invalid_grammar"}
        return JSONResponse({"error": content}, HTTPStatus.BAD_REQUEST)

    app.add_exception_handler(GenerationError, tell)


def restricting_field(body: Mapping[str, Any]) -> str | None:
    """By which field of a body the text must follow a format, if by any."""
    for field in ("structured_outputs", "response_format"):
        given = body.get(field)
        if given and given.get("type") != "text":
            return field
    for field in ("text", "output_config"):  # of /v1/responses and /v1/messages
        inner = (body.get(field) or {}).get("format") or {}
        if inner.get("type", "text") != "text":
            return f"{field}.format"
    is_free = body.get("tool_choice") in (None, "auto", "none", {"type": "auto"}, {"type": "none"})
    return None if is_free or not body.get("tools") else "tools"


def media_by_url(args: Namespace) -> bool:
    """Whether the operator has said from where vLLM may fetch pictures and sounds."""
    return bool(args.allowed_media_domains)


def fields_of(app: Any) -> dict[str, frozenset[str]]:
    """By path: the names that the body of a POST may have."""
    from fastapi.routing import APIRoute
    from pydantic import BaseModel

    found: dict[str, frozenset[str]] = {}
    for route in app.routes:
        if not isinstance(route, APIRoute) or "POST" not in route.methods:
            continue
        names: set[str] = set()
        for model in _models_of(route):
            if isinstance(model, type) and issubclass(model, BaseModel):
                for name, field in model.model_fields.items():
                    names |= {name, field.alias} if field.alias else {name}
        if names:
            found[route.path] = frozenset(names - NAMED_LATER)
    return found


def _models_of(route: Any) -> list[Any]:
    """The classes of a route's body; one of a union is as good as the other."""
    body = route.body_field
    if body is None:
        return []
    annotation = body.field_info.annotation
    return list(_flatten(annotation))


def _flatten(annotation: Any) -> list[Any]:
    arguments = getattr(annotation, "__args__", ())
    if arguments and not inspect.isclass(annotation):
        return [leaf for argument in arguments for leaf in _flatten(argument)]
    return [annotation]
