"""Closing connections without waiting for the client on the main loop (worker process, main
thread only)."""

from __future__ import annotations

import selectors
import socket
import time

from gpupool.deadlines import expired

READ_SIZE = 65536
LINGER_S = 2.0
MAX_LINGERING = 128  # each holds a file that no limit of connections counts


class Lingering:
    """Connections that were answered and whose client has not closed yet.

    Each was half-closed, so that the client still gets the answer: a plain close() with unread
    bytes makes the kernel reset the connection.
    """

    def __init__(self, poller: selectors.BaseSelector) -> None:
        self._poller = poller
        self._deadlines: dict[socket.socket, float] = {}

    def close(self, sock: socket.socket) -> None:
        """Send the end of the answer, then wait for the client's end or LINGER_S."""
        try:
            sock.setblocking(False)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            sock.close()
            return
        if len(self._deadlines) >= MAX_LINGERING:
            self._drop(next(iter(self._deadlines)))
        self._deadlines[sock] = time.monotonic() + LINGER_S
        self._poller.register(sock, selectors.EVENT_READ, self._readable)

    def _readable(self, sock: socket.socket) -> None:
        try:
            if sock.recv(READ_SIZE):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._drop(sock)

    def expire(self, now: float, *, everything: bool = False) -> None:
        """Give up on clients past their deadline, or on all."""
        for sock in expired(self._deadlines, now, everything=everything):
            self._drop(sock)

    def _drop(self, sock: socket.socket) -> None:
        del self._deadlines[sock]
        self._poller.unregister(sock)
        sock.close()
