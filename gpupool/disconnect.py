"""Who hung up: connections whose answer nobody waits for any more (worker, main thread only).

A client is gone when its connection is closed, reset or half-closed: HTTP clients keep their side
open until they have the answer, and a half-closed connection cannot be told from a closed one
before something is sent. The kernel tells it by EPOLLRDHUP, which the bytes of a next, pipelined
request do not set off.
"""

from __future__ import annotations

import contextlib
import select
import selectors
import socket
from collections.abc import Callable


class HangupWatcher:
    """Watches connections that nobody reads from."""

    def __init__(self, poller: selectors.BaseSelector) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}
        poller.register(self._epoll, selectors.EVENT_READ, self._notice)

    def watch(self, sock: socket.socket, on_hangup: Callable[[], None]) -> None:
        """Call once when the client hangs up, or has already; until `forget`."""
        self.forget(sock)
        self._watched[sock.fileno()] = on_hangup
        self._epoll.register(sock, select.EPOLLRDHUP | select.EPOLLONESHOT)

    def forget(self, sock: socket.socket) -> None:
        """Before the socket is closed or handed over: the kernel would go on telling as long as
        any process has the connection."""
        if self._watched.pop(sock.fileno(), None) is not None:
            # Not there where the number was that of a socket which was closed meanwhile.
            with contextlib.suppress(FileNotFoundError):
                self._epoll.unregister(sock)

    def _notice(self, epoll: select.epoll) -> None:
        for fd, _ in epoll.poll(0):
            on_hangup = self._watched.get(fd)
            if on_hangup is not None:
                on_hangup()
