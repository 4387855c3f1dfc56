"""A client's socket, on which a whole answer has a deadline (worker process, any thread).

The kernel's own limit for a blocking write, SO_SNDTIMEO, begins anew with every byte that is taken:
a client that takes one now and then would hold a handler thread for as long as it likes.
"""

from __future__ import annotations

import select
import socket
import time
from typing import Any

MIN_BYTES_PER_S = 16 << 10
"""Who takes less than that, over a whole answer, is given up."""


class AnswerSocket(socket.socket):
    """Blocks in sendall no longer than `patience_s` and the time that a slow but honest client
    takes for so long an answer."""

    patience_s = 60.0

    @classmethod
    def over(cls, sock: socket.socket) -> AnswerSocket:
        """The same connection; `sock` is empty afterwards."""
        family, kind, protocol, timeout = sock.family, sock.type, sock.proto, sock.gettimeout()
        made = cls(family, kind, protocol, fileno=sock.detach())
        made.settimeout(timeout)
        return made

    def sendall(self, data: Any, flags: int = 0) -> None:
        """As the standard one of a blocking socket; TimeoutError when its time is over."""
        rest = memoryview(data).cast("B")
        deadline = time.monotonic() + self.patience_s + len(rest) / MIN_BYTES_PER_S
        while rest:
            try:
                rest = rest[self.send(rest, flags | socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                self._wait_for_room(deadline)

    def _wait_for_room(self, deadline: float) -> None:
        poller = select.poll()
        poller.register(self, select.POLLOUT)
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poller.poll(left_s * 1000):
            raise TimeoutError("the client takes its answer too slowly")
