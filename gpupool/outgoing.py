"""An application's answer to one request: one piece, or a stream of server-sent events (worker,
event loop)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpupool.errors import RequestError, render_error

if TYPE_CHECKING:
    from gpupool.exchange import Send

JSON_TYPE = [(b"content-type", b"application/json")]
STREAM_TYPE = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
]
DONE = b"data: [DONE]\n\n"


def render_json(content: Any) -> bytes:
    """Without spaces: a stream has one of these for every token."""
    return json.dumps(content, separators=(",", ":")).encode()


def render_event(content: bytes, name: str | None = None) -> bytes:
    """One event of a stream; its content has no line breaks."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + content + b"\n\n"


class Outgoing:
    """Used for one answer: `whole`, or any number of `event` and then `done`. `fail` stands in the
    place of either, or of the rest of a stream. `render` makes JSON of what it is given."""

    def __init__(self, send: Send, render: Callable[[Any], bytes] = render_json) -> None:
        self._send = send
        self._render = render
        self._has_begun = False
        self.headers: dict[str, str] = {}
        """More of them, set before the answer begins."""

    async def whole(self, content: Any, status: int = 200) -> None:
        """All of the answer."""
        await self._start(status, JSON_TYPE)
        await self._body(self._render(content), is_last=True)

    async def event(self, content: Any, name: str | None = None) -> None:
        """The next piece of it."""
        if not self._has_begun:
            await self._start(200, STREAM_TYPE)
        await self._body(render_event(self._render(content), name))

    async def done(self, last: bytes = DONE) -> None:
        """No event follows."""
        await self._body(last, is_last=True)

    async def fail(self, error: RequestError) -> None:
        """What it failed with."""
        status, _, content = render_error(error)
        if self._has_begun:
            await self._body(render_event(render_json(content)), is_last=True)
        else:
            await self.whole(content, status)

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._has_begun = True
        more = [(name.encode(), value.encode("latin-1")) for name, value in self.headers.items()]
        start = {"type": "http.response.start", "status": status, "headers": headers + more}
        await self._send(start)

    async def _body(self, part: bytes, *, is_last: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": part, "more_body": not is_last})
