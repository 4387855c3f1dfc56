"""vLLM's own OpenAI application, mounted on the engine's client (worker, vLLM's event loop).

vLLM's launcher makes the same application for its own server. Imports vLLM only inside functions.
"""

from __future__ import annotations

import inspect
from argparse import Namespace
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

from gpupool.errors import BadRequest
from gpupool.exchange import App, Message, Receive, Send
from gpupool.json_object import object_or_empty

FAILED_GENERATION = "Internal server error"
"""The text of vLLM's GenerationError."""
NAMED_LATER = frozenset({"request_id"})
"""Fields of vLLM's request bodies that only confuse a pool: a client's own ids may collide, and the
header X-Request-Id is the place for them."""


async def mount(client: Any, args: Namespace) -> Any:
    """The application, ready to be called; the engine has loaded its model."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    tasks = await client.get_supported_tasks()
    app = build_app(args, tasks, client.vllm_config.model_config)
    await init_app_state(client, app.state, args, tasks)
    # vLLM's error handler tells its server to end when the engine is dead; ours finds out itself.
    app.state.server = SimpleNamespace(should_exit=False)
    return app


def telling_bad_formats(app: App) -> App:
    """vLLM's engine compiles a format when the request is there already. Where it cannot, or where
    no token fits, all that its API hears is that the generation failed, and it answers 500 to what
    is a bad request. So this raises BadRequest, for the gate."""

    async def tell(scope: Message, receive: Receive, send: Send) -> None:
        field = restricting_field(scope["state"]["body"])
        if field is None:
            await app(scope, receive, send)
            return
        failed: list[Message] = []

        async def look(message: Message) -> None:
            if failed or message.get("status") == HTTPStatus.INTERNAL_SERVER_ERROR:
                failed.append(message)
            else:
                await send(message)

        await app(scope, receive, look)
        if _is_failed_generation(failed):
            raise BadRequest(
                f"vLLM cannot generate by this {field}: it does not compile, or no text fits it; "
                "the server's log has what its compiler says",
                param=field,
                code="invalid_grammar",
            )
        for message in failed:
            await send(message)

    return tell


def _is_failed_generation(messages: Sequence[Message]) -> bool:
    """Whether these are vLLM's answer to a GenerationError, and not that to a dead engine."""
    body = b"".join(message.get("body", b"") for message in messages)
    error = object_or_empty(body).get("error")
    return isinstance(error, dict) and error.get("message") == FAILED_GENERATION


def restricting_field(body: Mapping[str, Any]) -> str | None:
    """By which field of a body, that vLLM has not read yet, the text must follow a format, if by
    any."""
    for field in ("structured_outputs", "response_format"):
        if _is_format(body.get(field)):
            return field
    for field in ("text", "output_config"):  # of /v1/responses and /v1/messages
        holder = body.get(field)
        if isinstance(holder, dict) and _is_format(holder.get("format")):
            return f"{field}.format"
    is_free = body.get("tool_choice") in (None, "auto", "none", {"type": "auto"}, {"type": "none"})
    return None if is_free or not body.get("tools") else "tools"


def _is_format(given: Any) -> bool:
    return isinstance(given, dict) and bool(given) and given.get("type") != "text"


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
