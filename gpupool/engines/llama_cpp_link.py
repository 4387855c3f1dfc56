"""Requests to llama.cpp's own server, one connection each (worker process, the engine's loop).

A token of a stream is an event, and an HTTP client that can do everything takes longer over one
than all the rest of the way to the client. This reads what one server writes, and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gpupool.errors import BadRequest, EngineError, RequestError

log = logging.getLogger(__name__)

Json = dict[str, Any]

CONNECT_TIMEOUT_S = 30.0
OK = 200
NOT_SUPPORTED = 501
EVENT_END = b"\n\n"
OVERSIZE = re.compile(r"input \((\d+) tokens\) is too large to process\D*(\d+)")
"""What llama.cpp calls an error of its own, in words alone: a text that has to be computed in one
step, to a vector or a rank, and is longer than a step."""


class LinkBroken(Exception):
    """The connection ended before the answer was whole: llama.cpp has died or is about to."""


class LlamaLink:
    """Where llama.cpp's server listens, and its secret."""

    def __init__(self, socket_path: str, secret: str) -> None:
        self._socket_path = socket_path
        self._secret = secret

    async def events(self, path: str, body: Json) -> AsyncGenerator[Json]:
        """What a stream tells, event by event; raises what llama.cpp answers instead of one.

        Closing the iterator closes the connection, which is what stops the generation.
        """
        async with self._asking(path, body) as answer:
            pending = b""
            while piece := await answer.next_piece():
                whole, _, pending = (pending + piece).rpartition(EVENT_END)
                for line in whole.splitlines():
                    event = _read_line(line)
                    if event is not None:
                        yield event

    async def ask(self, path: str, body: Json) -> Json:
        """An answer of one piece."""
        async with self._asking(path, body) as answer:
            return _read(await answer.rest())

    @asynccontextmanager
    async def _asking(self, path: str, body: Json) -> AsyncIterator[Answer]:
        """A connection on which a request was sent and a good answer begins."""
        reader, writer = await self._connect()
        try:
            writer.write(self._request(path, json.dumps(body).encode()))
            answer = Answer(reader)
            status = await answer.read_head()
            if status != OK:
                raise error_of(status, _read(await answer.rest()))
            yield answer
        except (OSError, EOFError, asyncio.LimitOverrunError) as error:
            raise LinkBroken(f"the connection broke: {error!r}") from error
        finally:
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await asyncio.open_unix_connection(self._socket_path)
        except (OSError, TimeoutError) as error:
            raise LinkBroken(f"no connection: {error!r}") from error

    def _request(self, path: str, body: bytes) -> bytes:
        # A new connection each: the server ends idle ones without notice, so that a request on
        # a kept one may be lost, and each kept one would hold one of its threads.
        lines = (
            f"POST {path} HTTP/1.1",
            "Host: llama.cpp",
            f"Authorization: Bearer {self._secret}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
        )
        return "\r\n".join((*lines, "", "")).encode() + body


class Answer:
    """One answer on its connection; EOFError if it ends early."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._is_chunked = False
        self._length = 0

    async def read_head(self) -> int:
        """The status."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status, _, rest = head.partition("\r\n")
        fields = dict(line.split(": ", 1) for line in rest.split("\r\n") if ": " in line)
        self._is_chunked = fields.get("transfer-encoding") == "chunked"
        self._length = int(fields.get("content-length", 0))
        return int(status.split()[1])

    async def next_piece(self) -> bytes:
        """A part of the body, b"" after the last one."""
        if not self._is_chunked:
            length, self._length = self._length, 0
            return await self._reader.readexactly(length)
        line = await self._reader.readuntil(b"\r\n")
        size = int(line, 16)
        return (await self._reader.readexactly(size + 2))[:-2]

    async def rest(self) -> bytes:
        """What is left of the body."""
        pieces = []
        while piece := await self.next_piece():
            pieces.append(piece)
        return b"".join(pieces)


def _read_line(line: bytes) -> Json | None:
    # Comments keep connections alive; the names of events are in their data too.
    if line.startswith(b"data: {"):
        event = _read(line[len(b"data: ") :])
        if "error" in event and "choices" not in event:
            raise error_of(500, event)
        return event
    if line.startswith(b"error: {"):
        raise error_of(500, {"error": _read(line[len(b"error: ") :])})
    return None


def _read(body: bytes) -> Json:
    try:
        answer = json.loads(body.decode())
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def error_of(status: int, answer: Json) -> RequestError:
    """llama.cpp's refusal as one of ours. Its text is for the client where it is about the
    request, else for the log."""
    error = answer.get("error")
    error = error if isinstance(error, dict) else {}
    code, kind, message = error.get("code", status), error.get("type"), str(error.get("message"))
    if oversize := OVERSIZE.match(message):
        return BadRequest(
            f"the text has {oversize[1]} tokens; this model takes {oversize[2]} at once",
            code="context_length_exceeded",
        )
    if kind == "exceed_context_size_error":
        return BadRequest(
            f"the prompt has {error.get('n_prompt_tokens')} tokens; this model's context has "
            f"{error.get('n_ctx')}",
            code="context_length_exceeded",
        )
    if code == NOT_SUPPORTED:
        return BadRequest(message, code="unsupported")
    if isinstance(code, int) and 400 <= code < 500:
        return BadRequest(message)
    log.error("llama.cpp failed on a request error=%r", error or answer)
    return EngineError("the engine failed on this request; the server's log says why")
