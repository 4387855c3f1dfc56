"""An application's messages: an answer of one piece, or a stream of events (worker process)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gpupool.errors import RequestError, render_error

if TYPE_CHECKING:
    from gpupool.exchange import Send

Json = dict[str, Any]

JSON_HEADERS = [(b"content-type", b"application/json")]
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
]
DONE = b"data: [DONE]\n\n"


class Outgoing:
    """The answer to one request; one of `give`, `fail` or a stream, which `fail` may end."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._has_begun = False

    async def give(self, content: Json, status: int = 200) -> None:
        """All at once."""
        await self._start(status, JSON_HEADERS)
        await self._body(json.dumps(content).encode(), is_last=True)

    async def stream(self, event: Json, name: str | None = None) -> None:
        """The next event of a stream."""
        if not self._has_begun:
            await self._start(200, STREAM_HEADERS)
        head = b"" if name is None else b"event: " + name.encode() + b"\n"
        await self._body(head + _render(event))

    async def end_stream(self, last: bytes = DONE) -> None:
        """The stream is whole."""
        await self._body(last, is_last=True)

    async def fail(self, error: RequestError) -> None:
        """An error in place of the answer, or of the rest of a stream."""
        status, _, content = render_error(error)
        if self._has_begun:
            await self._body(_render(content), is_last=True)
        else:
            await self.give(content, status)

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._has_begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _body(self, part: bytes, *, is_last: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": part, "more_body": not is_last})


def _render(event: Json) -> bytes:
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"
