"""One request's answer at the door, over as many attempts as it takes (Serve's proxy process).

Serve answers in plain text when no replica does, or does not answer at all when one dies. Nothing
of that reaches a client: before the first byte another attempt may be made, after it a stream ends
with the error as its last event.
"""

from __future__ import annotations

from collections.abc import Mapping

from gpupool.errors import EngineDead, render_error
from gpupool.exchange import App, Message, Receive, Send
from gpupool.outgoing import render_event, render_json
from gpupool.ray_pool.flask_call import Headers
from gpupool.ray_pool.names import FULL_STATUS, MOVED_HEADER
from gpupool.request_id import HEADER

ID_HEADER = HEADER.lower().encode()
LENGTH = b"content-length"
STREAM_TYPE = b"text/event-stream"
OUR_MARK = (b"x-content-type-options", b"nosniff")


class Attempt:
    """`run` again and again while it is worth it, then perhaps `fail`."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.id = request_id
        self._send = send
        self._refused_with = 0
        self._is_let_through = self._is_complete = self._is_stream = False

    @property
    def is_answered(self) -> bool:
        """Whether the client has got something."""
        return self._is_let_through

    @property
    def is_full(self) -> bool:
        """Whether Serve's queue was full in the last attempt."""
        return self._refused_with == FULL_STATUS

    @property
    def is_refused(self) -> bool:
        """Whether Serve had no replica to give the last attempt to."""
        return self._refused_with > 0

    async def run(self, app: App, scope: Message, receive: Receive) -> None:
        """Ask once. What breaks off amid its answer is over with it."""
        self._refused_with = 0
        self._is_moved = False
        await app(scope, receive, self._sift)
        if self._is_let_through and not self._is_complete:
            await self._break_off()

    async def give(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer of the door's own."""
        kept = [(name, value) for name, value in headers if name.lower() != LENGTH]
        await self._start(status, [*kept, (LENGTH, str(len(body)).encode())])
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
        self._is_complete = True

    async def fail(self, status: int, headers: Headers, body: bytes) -> None:
        """An error, unless something was answered."""
        if not self._is_let_through:
            await self.give(status, headers, body)

    async def _sift(self, message: Message) -> None:
        """Let a replica's answer through, and nothing of Serve's own."""
        if message["type"] == "http.response.start":
            headers = {name.lower(): value for name, value in message["headers"]}
            self._is_moved = MOVED_HEADER in headers
            is_refusal = message["status"] >= 400 and not _is_ours(headers)
            self._refused_with = message["status"] if is_refusal else 0
            if not self._is_moved and not is_refusal:
                self._is_stream = headers.get(b"content-type", b"").startswith(STREAM_TYPE)
                await self._start(message["status"], list(message["headers"]))
        elif self._is_let_through:
            self._is_complete = not message.get("more_body", False)
            await self._send(message)

    async def _start(self, status: int, headers: Headers) -> None:
        self._is_let_through = True
        kept = [(name, value) for name, value in headers if name.lower() != ID_HEADER]
        message = {"type": "http.response.start", "status": status}
        await self._send(message | {"headers": [*kept, (ID_HEADER, self.id.encode())]})

    async def _break_off(self) -> None:
        """Of anything but a stream of events the connection's end alone says that it is cut."""
        if self._is_stream:
            _, _, content = render_error(EngineDead("the replica died while it ran this request"))
            event = render_event(render_json(content))
            await self._send({"type": "http.response.body", "body": event, "more_body": False})


def _is_ours(headers: Mapping[bytes, bytes]) -> bool:
    name, value = OUR_MARK
    return headers.get(name) == value or headers.get(b"content-type", b"") == b"application/json"
