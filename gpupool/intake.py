"""Connections -> whole requests, on the worker's main loop (worker process, main thread only).

gunicorn's own parser reads every request, so there is no second opinion on where one ends. It
is written for a blocking socket; here it runs in a greenlet whose recv() returns to the main
loop while the socket has nothing. A silent or half-sent connection so costs a file descriptor
and a few kilobytes, never a thread, and a handler thread never waits for a client's bytes.
"""

from __future__ import annotations

import io
import selectors
import socket
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import greenlet
from gunicorn.http.errors import NoMoreData

from gpupool import request_id
from gpupool.call import Seen
from gpupool.connection import WAIT, Connection
from gpupool.deadlines import expired
from gpupool.errors import ReadTimeout, TooLarge
from gpupool.linger import Lingering
from gpupool.sender import check_sender

READ_SIZE = 65536
ID_HEADER = request_id.HEADER.upper()
"""As gunicorn's parser gives the names of headers."""


def _address(client: Any) -> str:
    return str(client[0]) if isinstance(client, tuple) and client else ""


def _note(request: Any, seen: Seen) -> None:
    """What the log says of a request, whatever becomes of it."""
    given = next((value for name, value in request.headers if name == ID_HEADER), "")
    seen.request_id, seen.route = request_id.accept(given), request.path


class Intake:
    """Reads requests for one worker. `on_request` gets each connection whose request is whole,
    or unreadable (`conn.parser.error`); `on_close` each that ended without one."""

    def __init__(
        self,
        poller: selectors.BaseSelector,
        on_request: Callable[[Connection], None],
        on_close: Callable[[Connection], None],
        *,
        max_body_bytes: int,
        read_timeout_s: float,
        idle_timeout_s: float,
        cors_origins: Collection[str] = (),
    ) -> None:
        self._poller = poller
        self._on_request = on_request
        self._on_close = on_close
        self._max_body_bytes = max_body_bytes
        self._read_timeout_s = read_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._cors_origins = cors_origins
        # Each holds deadlines in the order of insertion, which is their own order.
        self._idle: dict[Connection, float] = {}
        self._reading: dict[Connection, float] = {}
        self.lingering = Lingering(poller)

    def watch(self, conn: Connection) -> None:
        """Take a new connection; its first byte starts the reading."""
        patience_s = max(self._idle_timeout_s, self._read_timeout_s)
        self._idle[conn] = time.monotonic() + patience_s
        self._poller.register(conn.sock, selectors.EVENT_READ, partial(self._first_byte, conn))

    def _first_byte(self, conn: Connection, sock: socket.socket) -> None:
        del self._idle[conn]
        self._poller.unregister(sock)
        self.read(conn)

    def read(self, conn: Connection) -> None:
        """Read the next request of a connection that has bytes, on the socket or left over."""
        conn.sock.setblocking(False)
        conn.begin()
        conn.history.seen = Seen(client=_address(conn.client))
        conn.reader = greenlet.greenlet(self._read_request)
        self._reading[conn] = time.monotonic() + self._read_timeout_s
        if self._resume(conn, conn):
            self._listen(conn)

    def _listen(self, conn: Connection) -> None:
        self._poller.register(conn.sock, selectors.EVENT_READ, partial(self._readable, conn))

    def _readable(self, conn: Connection, sock: socket.socket) -> None:
        self._resume(conn)

    def _resume(self, conn: Connection, *arguments: Any) -> bool:
        """Run the parser until it waits (True) or the request is decided (False)."""
        assert conn.reader is not None
        try:
            if conn.reader.switch(*arguments) is WAIT:
                return True
        except (StopIteration, NoMoreData, OSError):  # closed, reset, or not reached any more
            self._forget(conn)
            self._on_close(conn)
            return False
        except Exception as error:
            conn.parser.error = error
        self._forget(conn)
        conn.history.since = conn.history.since or time.monotonic()
        self._on_request(conn)
        return False

    def _forget(self, conn: Connection) -> None:
        self._reading.pop(conn, None)
        conn.reader = None
        # By its number: a socket that is not there would be written into an error that nobody
        # reads, for which the kernel is asked for both its addresses.
        if conn.sock.fileno() in self._poller.get_map():
            self._poller.unregister(conn.sock)

    def _read_request(self, conn: Connection) -> None:
        request = conn.parser.parse()
        _note(request, conn.history.seen)
        check_sender(request.method, request.version, request.headers, self._cors_origins)
        length = getattr(request.body.reader, "length", None)
        if length is not None and length > self._max_body_bytes:
            raise self._too_large()
        if request._expected_100_continue:
            if not conn.parser.unreader.buf.getvalue():  # else the body comes without being asked
                conn.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            request._expected_100_continue = False
        if length != 0:
            # The body gets a deadline of its own, at the end of the queue of deadlines.
            del self._reading[conn]
            self._reading[conn] = time.monotonic() + self._read_timeout_s
        request.body = self._read_body(request.body, length)
        conn.parser.request = request

    def _read_body(self, source: Any, length: int | None) -> io.BytesIO:
        body = io.BytesIO()
        # One byte more than allowed tells a body that is too large from one that just fits.
        while data := source.read(min(READ_SIZE, self._max_body_bytes + 1 - body.tell())):
            body.write(data)
            if body.tell() > self._max_body_bytes:
                raise self._too_large()
        if length is not None and body.tell() < length:
            raise NoMoreData()
        body.seek(0)
        return body

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"the request body is larger than {self._max_body_bytes} bytes; send fewer instances "
            "per request, or start the pool with a larger --max_body_bytes"
        )

    def drop_oldest_idle(self) -> None:
        """Close the connection that has been silent longest, if there is one."""
        conn = next(iter(self._idle), None)
        if conn is not None:
            del self._idle[conn]
            self._poller.unregister(conn.sock)
            self._on_close(conn)

    def take_idle(self) -> list[Connection]:
        """Stop watching the connections that have sent nothing yet."""
        idle = list(self._idle)
        for conn in idle:
            del self._idle[conn]
            self._poller.unregister(conn.sock)
        return idle

    def take_unfinished(self) -> list[Connection]:
        """Stop reading the requests of which a part is there; `read_on` goes on with one."""
        unfinished = list(self._reading)
        for conn in unfinished:
            self._poller.unregister(conn.sock)
            del self._reading[conn]
        return unfinished

    def read_on(self, conn: Connection) -> None:
        """Wait for the rest of a request."""
        self._reading[conn] = time.monotonic() + self._read_timeout_s
        self._listen(conn)

    def expire(self, *, drain: bool = False) -> None:
        """Give up on connections past their deadline; with drain, on all idle ones at once."""
        now = time.monotonic()
        for conn in expired(self._idle, now, everything=drain):
            del self._idle[conn]
            self._poller.unregister(conn.sock)
            self._on_close(conn)
        for conn in expired(self._reading, now):
            conn.parser.error = ReadTimeout(
                f"the request was not complete after {self._read_timeout_s:g} seconds"
            )
            self._forget(conn)
            self._on_request(conn)
        self.lingering.expire(now, everything=drain)
