"""Streams of llama.cpp's own server, one connection each (worker process, the engine's loop).

h11 on a bare asyncio stream: httpx takes several times as long for each event, and a token of a
stream is an event.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h11

from gpupool.errors import BadRequest, EngineError, RequestError

log = logging.getLogger(__name__)

Json = dict[str, Any]
Talk = tuple[h11.Connection, asyncio.StreamReader]

CONNECT_TIMEOUT_S = 30.0
READ_BYTES = 64 << 10
OK = 200
NOT_SUPPORTED = 501
EVENT_END = b"\n\n"


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
        async with self._asking(path, body) as (http, reader):
            pending = b""
            while isinstance(data := await _next_event(http, reader), h11.Data):
                whole, _, pending = (pending + data.data).rpartition(EVENT_END)
                for line in whole.splitlines():
                    event = _read_line(line)
                    if event is not None:
                        yield event

    async def ask(self, path: str, body: Json) -> Json:
        """An answer of one piece."""
        async with self._asking(path, body) as (http, reader):
            return _read(await _rest(http, reader))

    @asynccontextmanager
    async def _asking(self, path: str, body: Json) -> AsyncIterator[Talk]:
        """A connection on which a request was sent and a good answer begins."""
        http = h11.Connection(h11.CLIENT)
        reader, writer = await self._connect()
        try:
            writer.write(self._request(http, path, json.dumps(body).encode()))
            head = await _next_event(http, reader)
            if head.status_code != OK:
                raise error_of(head.status_code, _read(await _rest(http, reader)))
            yield http, reader
        except (OSError, h11.ProtocolError) as error:
            raise LinkBroken(f"the connection broke: {error!r}") from error
        finally:
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await asyncio.open_unix_connection(self._socket_path)
        except (OSError, TimeoutError) as error:
            raise LinkBroken(f"no connection: {error!r}") from error

    def _request(self, http: h11.Connection, path: str, body: bytes) -> bytes:
        # A new connection each: the server ends idle ones without notice, so that a request on
        # a kept one may be lost, and each kept one would hold one of its threads.
        headers = [
            ("Host", "llama.cpp"),
            ("Authorization", f"Bearer {self._secret}"),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        parts = (
            http.send(h11.Request(method="POST", target=path, headers=headers)),
            http.send(h11.Data(data=body)),
            http.send(h11.EndOfMessage()),
        )
        return b"".join(part for part in parts if part)


async def _next_event(http: h11.Connection, reader: asyncio.StreamReader) -> Any:
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(await reader.read(READ_BYTES))
    return event


async def _rest(http: h11.Connection, reader: asyncio.StreamReader) -> bytes:
    body = b""
    while isinstance(data := await _next_event(http, reader), h11.Data):
        body += data.data
    return body


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
        answer = json.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def error_of(status: int, answer: Json) -> RequestError:
    """llama.cpp's refusal as one of ours. Its text is for the client where it is about the
    request, else for the log."""
    error = answer.get("error")
    error = error if isinstance(error, dict) else {}
    code, kind, message = error.get("code", status), error.get("type"), str(error.get("message"))
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
