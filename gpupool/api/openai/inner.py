"""Calling the application behind the gate, for a client or a coordinator (worker, event loop)."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpupool.api.openai.answer import error_of
from gpupool.api.openai.checks import Able, Body
from gpupool.batch import Answered, OpenAIJob, Outcome
from gpupool.engines.base import Failed
from gpupool.errors import EngineDead, EngineError, RequestError
from gpupool.exchange import SPEC, App, Message, Receive, Send
from gpupool.json_object import object_or_empty

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Behind:
    """What is behind the gate."""

    app_for: Callable[[str, Body], App]
    able: Able
    is_dead: Callable[[], bool]


async def run(
    behind: Behind, path: str, body: Body, request_id: str, receive: Receive, send: Send
) -> None:
    """Let the application answer. It gets no header that would have it decide what was decided
    before. Returns quietly where the engine died; what was sent says how far it came."""
    # Written anew, so that the engine reads what was checked: of a name that stands twice in the
    # client's text, one parser takes the first value and another the last.
    raw = json.dumps(body).encode()
    pending = [raw]

    async def replay() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    # Two clients may have chosen the same id.
    inner_id = f"{request_id}-{uuid.uuid4().hex[:8]}"
    scope: Message = {
        "type": "http",
        "asgi": SPEC,
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(raw)).encode()),
            (b"x-request-id", inner_id.encode()),
        ],
        "client": None,
        "server": None,
        "state": {"body": body},
    }
    try:
        await behind.app_for(path, body)(scope, replay, send)
    except asyncio.CancelledError:
        # The client has left, or the event loop ends under an engine that died.
        if not behind.is_dead():
            raise
    except Exception as error:
        if not behind.is_dead():
            raise
        log.warning("the engine died under request=%s: %s", request_id, error)


async def run_part(behind: Behind, job: OpenAIJob) -> Answered | Failed:
    """Let the application answer a part of a request, in one piece."""
    status, parts, is_complete = 0, [], False

    async def send(message: Message) -> None:
        nonlocal status, is_complete
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))
            is_complete = not message.get("more_body", False)

    async def receive() -> Message:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    try:
        await run(behind, job.path, job.body, uuid.uuid4().hex, receive, send)
    except RequestError as error:
        return Failed(error)
    except Exception:
        log.exception("unexpected error on a part of %s", job.path)
        return Failed(EngineError("the engine failed on this request; the server's log says why"))
    if (status >= 500 or not is_complete) and behind.is_dead():
        return Failed(EngineDead("the engine died while it ran this request"))
    return Answered(status, b"".join(parts))


def read_part(outcome: Outcome) -> dict[str, Any]:
    """The answer to a part; raises its error."""
    if isinstance(outcome, Failed):
        raise outcome.error
    assert isinstance(outcome, Answered)
    content = object_or_empty(outcome.content)
    if outcome.status != 200:
        raise error_of(content, outcome.status)
    return content
