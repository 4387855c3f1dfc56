"""A forked process for tests: it does one thing, tells about it, and lives until it is killed."""

from __future__ import annotations

import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from types import TracebackType

Say = Callable[[str], None]


class Forked:
    """Runs `body(say)` in a fork of this process; the lines it says are read with `hear`."""

    def __init__(self, body: Callable[[Say], None]) -> None:
        self._read_fd, write_fd = os.pipe()
        self._unread = b""
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            os.close(write_fd)
            return
        try:
            body(lambda text: _write(write_fd, text))
            while True:
                signal.pause()
        except BaseException:
            _write(write_fd, "raised " + traceback.format_exc().replace("\n", " | "))
        finally:
            os._exit(1)

    def hear(self, timeout_s: float = 10) -> str:
        """The next line."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._read_fd], [], [], deadline - time.monotonic())
            assert ready, f"process {self.pid} said nothing within {timeout_s} s"
            part = os.read(self._read_fd, 65536)
            assert part, f"process {self.pid} ended without a word"
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        text = line.decode()
        assert not text.startswith("raised "), text
        return text

    def kill(self, *, reap: bool = True) -> None:
        """SIGKILL; without `reap` it stays a zombie until `reap` is called."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)
        if reap:
            self.reap()

    def reap(self) -> None:
        """Wait for its end."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._read_fd)

    def __enter__(self) -> Forked:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


def _write(fd: int, text: str) -> None:
    os.write(fd, f"{text}\n".encode())
