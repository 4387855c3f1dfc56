"""A request's body: read whole and within its limits, and given out again as often as it is needed
(Serve's proxy process).

Serve hands a request to a replica as soon as its head is there, and a client that does not send the
rest would hold a slot for as long as it likes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from gpupool.errors import BadRequest, ReadTimeout, TooLarge
from gpupool.exchange import Message, Receive
from gpupool.ray_pool.rules import DoorRules


async def read(receive: Receive, headers: Mapping[bytes, bytes], rules: DoorRules) -> bytes | None:
    """All of it; None if the client has left meanwhile. TooLarge, by what was announced if it was;
    ReadTimeout."""
    announced = headers.get(b"content-length", b"0")
    if not announced.isdigit():
        raise BadRequest("the Content-Length is no number")
    is_too_large = int(announced) > rules.max_body_bytes
    try:
        async with asyncio.timeout(rules.read_timeout_s):
            return await _read(receive, rules, is_too_large=is_too_large)
    except TimeoutError:
        if is_too_large:
            raise _too_large(rules) from None
        raise ReadTimeout(
            f"the request's body was not there within {rules.read_timeout_s:g} s"
        ) from None


async def _read(receive: Receive, rules: DoorRules, *, is_too_large: bool) -> bytes | None:
    """What is too large is read and dropped: a client that still sends would not see the answer."""
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size += len(part)
        more = message.get("more_body", False)
        is_too_large = is_too_large or size > rules.max_body_bytes
        if not is_too_large:
            parts.append(part)
    if is_too_large:
        raise _too_large(rules)
    return b"".join(parts)


def _too_large(rules: DoorRules) -> TooLarge:
    return TooLarge(f"the request body is larger than {rules.max_body_bytes} bytes")


class Replay:
    """The ASGI receive of one attempt."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive
        self.is_gone = False
        """Whether the client has left."""

    async def __call__(self) -> Message:
        """The body, then what the client does."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        message = await self._receive()
        self.is_gone = self.is_gone or message["type"] == "http.disconnect"
        return message
