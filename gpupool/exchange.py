"""One request and its answer, between an accepted connection and an ASGI application (worker
process, the engine's event loop).

The worker's main loop has read the request whole, by gunicorn's parser; gunicorn's Response makes
the answer's head. In between there is neither a thread per request nor a second reading of HTTP:
the application's messages are written to the socket from the event loop that made them, so a
token of a stream costs one send().
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from datetime import datetime
from http.client import responses
from typing import Any
from urllib.parse import unquote

from gunicorn.http import wsgi

from gpupool.attending import attend, note_end
from gpupool.connection import Connection

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Coroutine[Any, Any, None]]

SEND_TIMEOUT_S = 60.0
SPEC = {"version": "3.0", "spec_version": "2.3"}
"""2.3: Starlette watches for the client's end itself. From 2.4 on it waits for a failing send,
which comes with the next token, if one comes."""


class Exchange:
    """Runs an application for one request. `close_after`: the connection is not to be kept.
    `on_answered` is called on the event loop, before the last bytes of the answer are sent."""

    def __init__(
        self,
        cfg: Any,
        conn: Connection,
        *,
        close_after: bool,
        on_answered: Callable[[], None] = lambda: None,
    ) -> None:
        self._cfg = cfg
        self._conn = conn
        self._request = conn.parser.request
        self._answer = wsgi.Response(self._request, conn.sock, cfg)
        if close_after:
            self._answer.force_close()
        self._on_answered = on_answered
        self._is_body_read = False
        self._is_complete = False
        self._is_sent = False
        self._gone = asyncio.Event()
        self._began = datetime.now()

    async def run(self, app: App, access_log: Callable[..., None]) -> bool:
        """Answer; whether the connection can take a next request. Raises Moved if another worker
        is to answer."""
        work = asyncio.create_task(app(self._scope(), self._receive, self._send))
        await attend(work, self._gone, self._conn.call)
        note_end(work, self._request.path)
        self._log_access(access_log)
        return self._is_complete and not self._gone.is_set() and not self._answer.should_close()

    def _log_access(self, access_log: Callable[..., None]) -> None:
        if self._answer.status is None:
            return
        environ = wsgi.default_environ(self._request, self._conn.sock, self._cfg)
        environ["REMOTE_ADDR"] = _host(self._conn.client)
        access_log(self._answer, self._request, environ, datetime.now() - self._began)

    def _scope(self) -> Message:
        request = self._request
        return {
            "type": "http",
            "asgi": SPEC,
            "http_version": "{}.{}".format(*request.version),
            "method": request.method,
            "scheme": request.scheme,
            "path": unquote(request.path),
            "raw_path": request.path.encode("latin-1"),
            "query_string": (request.query or "").encode("latin-1"),
            "root_path": "",
            "headers": [
                (name.lower().encode("latin-1"), value.encode("latin-1"))
                for name, value in request.headers
            ],
            "client": _pair(self._conn.client),
            "server": _pair(self._conn.server),
            "state": {},
        }

    async def _receive(self) -> Message:
        if not self._is_body_read:
            self._is_body_read = True
            body = self._request.body.read()
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._gone.is_set():
            return  # An application may not know yet.
        if message["type"] == "http.response.start":
            self._start(message)
        elif message["type"] == "http.response.body":
            more = message.get("more_body", False)
            if not more:
                self._on_answered()
            try:
                await self._write(self._frame(message.get("body", b""), is_last=not more))
            except OSError as error:  # a timeout too
                log.info("a client does not take its answer: %s", error or type(error).__name__)
                self._gone.set()
            self._is_complete = not more

    def _start(self, message: Message) -> None:
        status = message["status"]
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in message.get("headers", ())
        ]
        self._answer.start_response(f"{status} {responses.get(status, 'Status')}", headers)

    def _frame(self, body: bytes, *, is_last: bool) -> bytes:
        """The next bytes of the answer, the head before the first of the body."""
        parts = []
        if not self._answer.headers_sent:
            lines = self._answer.default_headers()
            lines += [f"{name}: {value}\r\n" for name, value in self._answer.headers]
            parts.append("".join((*lines, "\r\n")).encode("latin-1"))
            self._answer.headers_sent = True
        if self._request.method != "HEAD" and body:
            self._answer.sent += len(body)
            parts += [b"%X\r\n" % len(body), body, b"\r\n"] if self._answer.chunked else [body]
        if is_last and self._answer.chunked:
            parts.append(b"0\r\n\r\n")
        return b"".join(parts)

    async def _write(self, data: bytes) -> None:
        sock: socket.socket = self._conn.sock
        try:
            # Nearly always the socket takes all at once.
            num_sent = sock.send(data)
        except BlockingIOError:
            num_sent = 0
        if num_sent < len(data):
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await asyncio.get_running_loop().sock_sendall(sock, data[num_sent:])


def _host(address: Any) -> str:
    return str(address[0]) if isinstance(address, tuple) else ""


def _pair(address: Any) -> tuple[str, int] | None:
    return (address[0], address[1]) if isinstance(address, tuple) else None
