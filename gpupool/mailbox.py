"""A mailbox per row of the scoreboard, over which workers pass each other connections.

Socket pairs made in the master before the first fork: only the pool's own processes have them,
and a message outlives the worker it was sent to, whose successor finds it. A message is one
datagram: a head in JSON, data, and descriptors. Sending and receiving never block.
"""

from __future__ import annotations

import array
import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)

MAX_INLINE = 16_384  # more data travels as a file in memory
MAX_FDS = 3
MAX_HEAD = 65_536
BUFFER_BYTES = 1 << 20
TELL_AGAIN_S = 60.0


@dataclass(slots=True)
class Message:
    """kind says what `fields`, `data` and `fds` are; the receiver owns the descriptors."""

    kind: str
    sender: int
    fields: dict[str, Any] = field(default_factory=dict)
    data: bytes = b""
    fds: list[int] = field(default_factory=list)


class Mailboxes:
    """All mailboxes of one pool; any process of it may send to any."""

    def __init__(self, count: int) -> None:
        self._pairs = [
            socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(count)
        ]
        for sending, receiving in self._pairs:
            sending.setblocking(False)
            receiving.setblocking(False)
            sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self._told = [float("-inf")] * count
        self._num_untold = [0] * count

    def receiver(self, index: int) -> socket.socket:
        """For a poller: readable when there is a message."""
        return self._pairs[index][1]

    def send(self, to: int, message: Message) -> bool:
        """False where it cannot be taken now: the mailbox is full, or too many descriptors are
        on their way. The caller keeps its own copies of the descriptors in either case."""
        data, fds = message.data, list(message.fds)
        extra = -1
        try:
            if len(data) > MAX_INLINE:
                extra = _in_memory(data)
                fds.append(extra)
                data = b""
            head = json.dumps([message.kind, message.sender, extra >= 0, message.fields]).encode()
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            self._pairs[to][0].sendmsg([head, b"\n", data], rights)
        except OSError as error:
            self._tell(to, message.kind, error)
            return False
        finally:
            if extra >= 0:
                os.close(extra)
        return True

    def _tell(self, to: int, kind: str, error: OSError) -> None:
        """At once, then once a minute: a sibling that hangs is asked twenty times a second."""
        now = time.monotonic()
        if now - self._told[to] < TELL_AGAIN_S:
            self._num_untold[to] += 1
            return
        untold, self._num_untold[to], self._told[to] = self._num_untold[to], 0, now
        more = f" ({untold} more since the last such line)" if untold else ""
        log.warning("cannot hand over to row=%d kind=%s: %s%s", to, kind, error, more)

    def receive(self, index: int) -> Message | None:
        """The oldest message, or None; several processes may ask for the same mailbox."""
        size = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
        while True:
            try:
                raw, ancillary, flags, _ = self._pairs[index][1].recvmsg(
                    MAX_HEAD + MAX_INLINE, size, socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                return None
            fds = _descriptors(ancillary)
            if not flags & socket.MSG_CTRUNC:
                return _message(raw, fds)
            # The kernel drops what this process has no number for, and says no more than that.
            log.error("a message to row=%d is lost: no free files", index)
            close_all(fds)


def _message(raw: bytes, fds: list[int]) -> Message:
    head, _, data = raw.partition(b"\n")
    kind, sender, is_in_memory, fields = json.loads(head)
    if is_in_memory:
        data = _take(fds.pop())
    return Message(kind, sender, fields, data, fds)


def _in_memory(data: bytes) -> int:
    fd = os.memfd_create("gpupool-request")
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except BaseException:
        os.close(fd)
        raise
    return fd


def _take(fd: int) -> bytes:
    with open(fd, "rb") as file:
        file.seek(0)
        return file.read()


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def close_all(fds: Sequence[int]) -> None:
    """Let go of descriptors that nobody wants."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
