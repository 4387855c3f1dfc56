"""Connections that go to another worker, and those that come (worker process, main thread).

A connection travels with the bytes that were read of its request and with what the request has
gone through; the receiver reads the same bytes again and answers the client itself.
"""

from __future__ import annotations

import socket

from gpupool.call import History
from gpupool.connection import Connection
from gpupool.host import Host
from gpupool.key_limiter import KeyLimiter
from gpupool.key_use import Sent
from gpupool.mailbox import Mailboxes, Message
from gpupool.scoreboard import Scoreboard


class Transfer:
    """One worker's way to the others."""

    def __init__(
        self,
        host: Host,
        index: int,
        scoreboard: Scoreboard,
        mailboxes: Mailboxes,
        limiter: KeyLimiter,
    ) -> None:
        self._host = host
        self._index = index
        self._scoreboard = scoreboard
        self._mailboxes = mailboxes
        self._limiter = limiter

    def hand_over(self, conn: Connection, to: int) -> bool:
        """Let another row's worker answer a request; False if it cannot be sent."""
        message = self.message(conn, "request")
        message.fields["number"] = self._scoreboard.note_handed_over(self._index, to)
        message.fields["sent"] = self._limiter.send(conn.history, to)
        if self._send(conn, to, message):
            return True
        self._limiter.take_back(conn.history)
        self._scoreboard.take_back(self._index, to)
        return False

    def hand_over_idle(self, conn: Connection, to: int) -> bool:
        """The same for a connection that has sent nothing of a next request."""
        return self._send(conn, to, self.message(conn, "idle"))

    def _send(self, conn: Connection, to: int, message: Message) -> bool:
        if not self._mailboxes.send(to, message):
            return False
        self._limiter.note_sent(conn.history)
        self._host.hang_up(conn)
        return True

    def message(self, conn: Connection, kind: str) -> Message:
        """The connection and what is there of its request."""
        fields = {"client": conn.client, "server": conn.server} | conn.history.as_fields()
        data = b"" if kind == "idle" else conn.received()
        return Message(kind, self._index, fields, data, [conn.sock.fileno()])

    def adopt(self, message: Message) -> Connection:
        """The connection that a message brings."""
        fields = message.fields
        client, server = (_address(fields[name]) for name in ("client", "server"))
        conn = self._host.adopt(socket.socket(fileno=message.fds.pop()), client, server)
        history = History.of_fields(fields)
        self._limiter.take_over(history, Sent(*fields["sent"]) if "sent" in fields else None)
        conn.expect(message.data, history)
        return conn


def _address(value: object) -> object:
    """JSON has no tuples, and the WSGI environment is made from tuples."""
    return tuple(value) if isinstance(value, list) else value
