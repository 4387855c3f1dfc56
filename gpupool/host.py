"""What admission asks of the worker that it decides for (worker process, main thread)."""

from __future__ import annotations

import socket
from typing import Protocol

from gpupool.connection import Connection
from gpupool.errors import RequestError
from gpupool.mailbox import Message


class Host(Protocol):
    """Implemented by the worker."""

    def answer(self, conn: Connection) -> None:
        """Answer a request on a handler thread."""

    def refuse(self, conn: Connection, error: RequestError) -> None:
        """Answer a request with an error, at once."""

    def hang_up(self, conn: Connection) -> None:
        """Close a connection without an answer, or after it was handed over."""

    def adopt(self, sock: socket.socket, client: object, server: object) -> Connection:
        """Take over a connection that another worker accepted."""

    def open_lane(self, sock: socket.socket, copy: Message) -> None:
        """Serve a sibling's batch. With a descriptor, `copy` is the whole request, to be
        answered here if the sibling is killed."""

    def tell_metrics(self, sock: socket.socket) -> None:
        """A sibling asks what this worker's engine tells."""
