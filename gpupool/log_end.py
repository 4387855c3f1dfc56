"""Where the lines of the log leave a process, with --log_format json (every process that writes
some). Standard library only.

Nobody waits there for long: a line that nobody takes is dropped and counted, and the count is told
as soon as somebody takes lines again.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import stat
from contextlib import suppress

from gpupool.json_lines import JsonFormatter, render

WAIT_S = 0.2
"""For a reader that is slow; of one that sleeps the next line does not wait any more."""
PIECE_BYTES = 4096
"""A pipe that says it has room has room for that."""
REOPENED = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class LogEnd:
    """A descriptor's other way: a stream for whole lines, one process at a time. No program that is
    executed inherits it."""

    def __init__(self, fd: int) -> None:
        mode = os.fstat(fd).st_mode
        self._socket: socket.socket | None = None
        self._may_block = False
        self._fd = -1
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            # Opened anew: the flag would be there for all who share what is open.
            with suppress(OSError):
                self._fd = os.open(f"/proc/self/fd/{fd}", REOPENED)
            self._may_block = self._fd < 0
        if self._fd < 0:
            self._fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=self._fd)
        self._rest = b""  # of a line whose beginning is out
        self._num_dropped = 0
        self._is_asleep = False  # the reader
        self._is_torn = False  # what is out may end amid a line

    def fileno(self) -> int:
        """For programs that are to write there themselves."""
        return self._fd

    def close(self) -> None:
        """What was opened here, and nothing that others have."""
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self._fd)

    def write(self, text: str) -> int:
        """A line with its end. Never raises: who logs has other things to do."""
        if not (self.tell() and self._send(text.encode(errors="backslashreplace"))):
            self._num_dropped += 1
        return len(text)

    def flush(self) -> None:
        """What can leave has left."""

    def tell(self) -> bool:
        """Say what was dropped, if something was; whether a line may follow."""
        rest, self._rest = self._rest, b""
        if rest and not self._send(rest):
            if self._is_torn:
                self._num_dropped += 1
            else:
                self._rest = rest
        if self._rest:
            return False
        if not self._num_dropped:
            return True
        told = render(
            f"lines dropped here, as nobody took them: {self._num_dropped}",
            level="warning",
            logger="gpupool.log_end",
            worker=JsonFormatter.worker,
        )
        if not self._send(told.encode() + b"\n"):
            return False
        self._num_dropped = 0
        return not self._rest

    def _send(self, data: bytes) -> bool:
        """Whether it leaves; what began to leave is kept for the next turn."""
        left = b"\n" + data if self._is_torn else data
        size = len(left)
        while left:
            try:
                left = left[self._put(left) :]
                self._is_asleep = self._is_torn = False
            except BlockingIOError:
                if self._is_asleep or not self._has_room(WAIT_S):
                    self._is_asleep = True
                    break
            except OSError:  # a full disk, say: others may have been stopped amid a line, too
                self._is_torn = True
                return False
        if 0 < len(left) < size:
            self._rest = left
        return len(left) < size

    def _put(self, data: bytes) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        if self._may_block:
            if not self._has_room(0.0):
                raise BlockingIOError
            data = data[:PIECE_BYTES]
        return os.write(self._fd, data)

    def _has_room(self, wait_s: float) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(wait_s * 1000))
