"""What the engine's application answers, on its way to the client (worker, event loop).

Errors get the one shape, a stream that breaks ends with an error event and without [DONE], the
usage event that was asked for only to count is left out, and what there is to count is counted.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from gpupool.call import Call
from gpupool.clock import SequenceClock
from gpupool.errors import EngineError, RequestError, render_error
from gpupool.exchange import Message, Send
from gpupool.json_object import object_or_empty
from gpupool.outgoing import JSON_TYPE, render_event
from gpupool.request_id import HEADER

log = logging.getLogger(__name__)

DONE = b"data: [DONE]"
OWN_HEADERS = (("X-Content-Type-Options", "nosniff"),)
ERROR_EVENTS = (b'data: {"error"', b"event: error", b"event: response.failed")
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "overloaded_error",
    501: "invalid_request_error",
    503: "unavailable_error",
}


class Answer:
    """Stands between one call of the application and the client."""

    def __init__(
        self,
        send: Send,
        request_id: str,
        call: Call,
        *,
        is_dead: Callable[[], bool],
    ) -> None:
        self._send = send
        self.request_id = request_id
        self._call = call
        self.clock: SequenceClock | None = None
        self._is_dead = is_dead
        self.keeps_usage = False
        """Whether the client asked for the event that tells a stream's usage."""
        self._start: Message | None = None  # held back until the first bytes of the body
        self._held: list[bytes] = []
        self._is_stream = False
        self._is_broken = False
        self.status = 0
        self.headers: dict[str, str] = {}
        """More of them, for every answer."""
        self.has_begun = False
        """Whether anything has gone to the client."""
        self.is_complete = False
        self.prompt_tokens = 0
        self.generated_tokens = 0

    async def send(self, message: Message) -> None:
        """In place of the server's own."""
        if message["type"] == "http.response.start":
            self._take_start(message)
        elif message["type"] == "http.response.body":
            body, is_last = message.get("body", b""), not message.get("more_body", False)
            if self._is_stream:
                await self._pass_on(body, is_last=is_last)
            else:
                self._held.append(body)
                if is_last:
                    await self._send_whole(b"".join(self._held))

    def _take_start(self, message: Message) -> None:
        self._start = message
        self.status = message["status"]
        self._is_stream = any(
            name.lower() == b"content-type" and value.startswith(b"text/event-stream")
            for name, value in message.get("headers", ())
        )

    # Answers of one piece.

    async def give(self, content: dict[str, Any]) -> None:
        """Answer without the engine."""
        self._take_start({"type": "http.response.start", "status": 200, "headers": JSON_TYPE})
        await self._send_whole(json.dumps(content).encode())

    async def _send_whole(self, body: bytes) -> None:
        if self.status >= 500 and self._is_dead():
            return  # Another worker may answer.
        if self.status >= 400:
            await self.fail(error_of(object_or_empty(body), self.status))
            return
        self._count(object_or_empty(body).get("usage"))
        await self._end(body)

    async def fail(self, error: BaseException) -> None:
        """Answer with an error; in a stream that has begun, as its last event."""
        if self.has_begun:
            await self._break(error)
            return
        status, more, body = render_error(error)
        headers = [(name.lower().encode(), value.encode()) for name, value in more.items()]
        self._take_start(
            {"type": "http.response.start", "status": status, "headers": JSON_TYPE + headers}
        )
        await self._end(json.dumps(body).encode())

    # Streams.

    async def _pass_on(self, body: bytes, *, is_last: bool) -> None:
        if self._is_broken:
            return
        if body.startswith(ERROR_EVENTS):
            await self._break(error_of(_read_event(body), HTTPStatus.INTERNAL_SERVER_ERROR))
            return
        if b'"usage"' in body:
            body = self._take_usage(body)
        elif body and not body.startswith((DONE, b":")):
            self._tick()
        if body or is_last:
            await self._begin(None)
            await self._send({"type": "http.response.body", "body": body, "more_body": not is_last})
        self.is_complete = is_last

    def _take_usage(self, body: bytes) -> bytes:
        """Count it, and leave its event out unless the client asked for it."""
        kept = []
        for event in body.split(b"\n\n"):
            content = _read_event(event)
            usage = content.get("usage") or (content.get("response") or {}).get("usage")
            if usage is None:
                # Some engines write "usage": null into every event.
                if content.get("choices"):
                    self._tick()
            else:
                self._count(usage)
                if content.get("choices") == [] and not self.keeps_usage:
                    continue
            kept.append(event)
        return b"\n\n".join(kept)

    async def _break(self, error: BaseException) -> None:
        """The last event says what happened; no [DONE] follows."""
        if self._is_broken or self.is_complete:
            return
        self._is_broken = True
        _, _, body = render_error(error)
        await self._end(render_event(json.dumps(body).encode()))

    def _tick(self) -> None:
        self._call.num_tokens += 1  # for a client that leaves before the usage
        if self.clock is not None:
            self.clock.tick(1)

    # Both.

    async def _end(self, body: bytes) -> None:
        """The whole body, or the last event of a stream."""
        await self._begin(None if self._is_stream else len(body))
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
        self.is_complete = True

    async def _begin(self, length: int | None) -> None:
        if self.has_begun or self._start is None:
            return
        self.has_begun = True
        headers = [
            (name, value)
            for name, value in self._start.get("headers", ())
            if name.lower() not in (b"content-length", b"x-request-id", b"server")
        ]
        headers += [
            (name.lower().encode(), value.encode("latin-1"))
            for name, value in (*self.headers.items(), *OWN_HEADERS, (HEADER, self.request_id))
        ]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        await self._send({**self._start, "headers": headers})

    def _count(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        self.prompt_tokens = _number(usage, "prompt_tokens", "input_tokens")
        self.generated_tokens = _number(usage, "completion_tokens", "output_tokens")
        self._call.num_tokens = self.prompt_tokens + self.generated_tokens
        self._call.num_prompt_tokens = self.prompt_tokens


def _number(usage: dict[str, Any], *names: str) -> int:
    found = [usage[name] for name in names if isinstance(usage.get(name), int)]
    return found[0] if found else 0


def error_of(body: dict[str, Any], status: int) -> RequestError:
    """Of vLLM's, llama.cpp's and our own error bodies. The engine's text is for the client only
    where it is about the request."""
    given = body.get("error")
    fields = given if isinstance(given, dict) else {"message": given or body.get("detail")}
    code = fields.get("code")
    if isinstance(code, int) and 400 <= code < 600:
        status = code
    message = fields.get("message")
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.NOT_IMPLEMENTED:
        log.error("the engine failed on a request: %r", message)
        return EngineError("the engine failed on this request; the server's log says why")
    error = RequestError(
        message if isinstance(message, str) and message else HTTPStatus(status).phrase,
        param=fields.get("param") if isinstance(fields.get("param"), str) else None,
        code=code if isinstance(code, str) else None,
    )
    error.status = HTTPStatus.BAD_REQUEST if status in (422, 501) else status
    error.type = TYPES.get(status, "invalid_request_error")
    return error


def _read_event(event: bytes) -> dict[str, Any]:
    for line in event.splitlines():
        if line.startswith(b"data: {"):
            return object_or_empty(line.removeprefix(b"data: "))
    return {}
