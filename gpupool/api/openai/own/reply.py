"""One answer on its way out: JSON in one piece, or a stream of events (worker, event loop)."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from gpupool.exchange import Send

JSON_TYPE = [(b"content-type", b"application/json")]
STREAM_TYPE = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
]
DONE = b"data: [DONE]\n\n"


class Reply:
    """Used by one handler, which gives either one whole or events and then `done`."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._has_begun = False

    async def whole(self, content: BaseModel | dict[str, Any]) -> None:
        """All of the answer."""
        await self._start(JSON_TYPE)
        await self._send({"type": "http.response.body", "body": render(content)})

    async def event(self, content: BaseModel) -> None:
        """The next piece of it."""
        if not self._has_begun:
            self._has_begun = True
            await self._start(STREAM_TYPE)
        body = b"data: " + render(content) + b"\n\n"
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def done(self) -> None:
        """No event follows."""
        await self._send({"type": "http.response.body", "body": DONE, "more_body": False})

    async def _start(self, headers: list[tuple[bytes, bytes]]) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})


def render(content: BaseModel | dict[str, Any]) -> bytes:
    """As JSON; of a model, the fields that were set. `warnings`: streams have nulls where the
    types of the openai package have none."""
    if isinstance(content, BaseModel):
        return content.model_dump_json(exclude_unset=True, warnings=False).encode()
    return json.dumps(content, ensure_ascii=False).encode()
