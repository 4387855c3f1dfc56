"""The service manager's end of sd_notify for tests: a real datagram socket."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path
from types import TracebackType

from tests.pool import wait_until


class NotifySocket:
    """Bound for the block; `heard` are the messages so far, each as its lines."""

    def __init__(self, folder: Path | None = None) -> None:
        """In a folder, or without one in the abstract namespace."""
        name = f"notify-{os.getpid()}-{secrets.token_hex(4)}"
        self.address = f"@{name}" if folder is None else str(folder / name)
        self.heard: list[dict[str, str]] = []

    def __enter__(self) -> NotifySocket:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(self.address.replace("@", "\0", 1))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType
    ) -> None:
        self._socket.close()
        if kind is not None:
            print("notifications:", *self.heard, sep="\n")

    def listen(self) -> list[dict[str, str]]:
        """Take in what has come; all messages so far."""
        while True:
            try:
                message = self._socket.recv(65536).decode()
            except BlockingIOError:
                return self.heard
            self.heard.append(dict(line.split("=", 1) for line in message.splitlines()))

    def has(self, name: str, value: str) -> bool:
        """Whether some message said so."""
        return self.count(name, value) > 0

    def count(self, name: str, value: str) -> int:
        """How many did."""
        return sum(message.get(name) == value for message in self.listen())

    def last(self, name: str) -> str:
        """The newest value."""
        return next((m[name] for m in reversed(self.listen()) if name in m), "")

    def wait_for(self, name: str, value: str, deadline_s: float = 20.0) -> None:
        wait_until(lambda: self.has(name, value), deadline_s, f"{name}={value} in {self.heard}")
