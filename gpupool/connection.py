"""One client connection and the request that is being read from it (worker process).

The main loop owns a connection until its request is whole; then one handler thread has it.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import greenlet
from gunicorn.config import Config
from gunicorn.http import get_parser
from gunicorn.workers.gthread import TConn

from gpupool.answer_socket import AnswerSocket
from gpupool.call import Call, History

if TYPE_CHECKING:
    from gpupool.intake import Intake

WAIT = object()
"""What a reading greenlet hands to the main loop when the socket has nothing yet."""


class _PatientSocket:
    """recv() for the parser: takes what is there, else returns to the main loop and waits. Keeps
    what it took of the request, in case that another worker is to answer it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.taken: list[bytes] = []

    def recv(self, size: int) -> bytes:
        while True:
            try:
                data = self._sock.recv(size)
            except BlockingIOError:
                greenlet.getcurrent().parent.switch(WAIT)
            else:
                self.taken.append(data)
                return data


class WholeRequest:
    """Stands where gthread's handle() expects a parser: hands out what was read already."""

    def __init__(self, cfg: Config, sock: socket.socket, client: Any) -> None:
        self.source = _PatientSocket(sock)
        self._parser = get_parser(cfg, self.source, client)
        self.unreader = self._parser.unreader
        self.request: Any = None
        self.error: Exception | None = None

    def parse(self) -> Any:
        """The next request's head; raises StopIteration when the client has closed."""
        return next(self._parser)

    def __next__(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.request

    def finish_body(self, deadline: float | None = None) -> bool:
        """The body was read to its end before the request was handed over."""
        return True


class Connection(TConn):  # type: ignore[misc]
    """One client connection: idle, being read, or handed over to a handler thread."""

    def __init__(
        self, cfg: Config, sock: AnswerSocket, client: Any, server: Any, intake: Intake
    ) -> None:
        super().__init__(cfg, sock, client, server)
        # handle() must neither wait for data nor make a parser of its own.
        self.initialized = True
        self.parser = WholeRequest(cfg, sock, client)
        self.reader: greenlet.greenlet | None = None
        self.intake = intake
        self.call = Call()
        self.history = History()
        self.was_forwarded = False

    def begin(self) -> None:
        """A next request begins."""
        self.parser.request = self.parser.error = None
        self.parser.source.taken = [self.parser.unreader.buf.getvalue()]
        if not self.was_forwarded:
            self.history = History()
        self.call = Call(history=self.history)

    def expect(self, data: bytes, history: History) -> None:
        """A sibling read this much of the request, or nothing of a next one."""
        self.was_forwarded = bool(data)
        self.history = history
        self.parser.unreader.unread(data)

    @property
    def is_begun(self) -> bool:
        """Whether some of a request is there that is not answered."""
        return any(self.parser.source.taken)

    def received(self) -> bytes:
        """Every byte of the request, and of a next one if the client has sent some."""
        return b"".join(self.parser.source.taken)

    def settle_here(self) -> None:
        """This worker answers the request."""
        self.was_forwarded = False

    def forget_request(self) -> None:
        """It is answered; the next one is nobody else's."""
        self.was_forwarded = False
        self.parser.source.taken = []
        self.call = Call()

    def close(self, graceful: bool = False) -> None:
        """Close without blocking: stock gthread waits up to 2 s for the client, on the main
        thread."""
        if graceful:
            self.intake.lingering.close(self.sock)
        else:
            super().close()
