"""What the siblings' engines tell, asked through mailboxes (worker, control threads)."""

from __future__ import annotations

import contextlib
import logging
import socket
import time

from gpupool.engine_metrics import engine_text
from gpupool.mailbox import Mailboxes, Message
from gpupool.replica import Replica
from gpupool.scoreboard import Scoreboard

log = logging.getLogger(__name__)

TIMEOUT_S = 1.0  # for all of them together: who does not answer is left out of this scrape


class Inquiry:
    """Asks for the rest of the pool."""

    def __init__(self, scoreboard: Scoreboard, index: int, mailboxes: Mailboxes) -> None:
        self._scoreboard = scoreboard
        self._index = index
        self._mailboxes = mailboxes

    def engine_texts(self) -> dict[int, str]:
        """By slot, for each ready sibling that answers in time."""
        deadline = time.monotonic() + TIMEOUT_S
        with contextlib.ExitStack() as opened:
            asked = {}
            for index, row in enumerate(self._scoreboard):
                if index != self._index and row.is_ready:
                    ours, theirs = socket.socketpair()
                    opened.enter_context(ours)
                    with theirs:
                        message = Message("metrics", self._index, fds=[theirs.fileno()])
                        if self._mailboxes.send(index, message):
                            asked[row.slot] = ours
            return {slot: _read(sock, deadline) for slot, sock in asked.items()}


def _read(sock: socket.socket, deadline: float) -> str:
    parts: list[bytes] = []
    try:
        while True:
            sock.settimeout(max(0.01, deadline - time.monotonic()))
            part = sock.recv(1 << 20)
            if not part:
                return b"".join(parts).decode()
            parts.append(part)
    except OSError:
        log.debug("a sibling did not tell its metrics in time")
        return ""


def tell(sock: socket.socket, replica: Replica) -> None:
    """Answer a sibling that asks."""
    with sock:
        sock.settimeout(TIMEOUT_S)
        with contextlib.suppress(OSError):  # it did not wait
            sock.sendall(engine_text(replica).encode())
