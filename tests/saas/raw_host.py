"""A host that is no HTTP server: whatever bytes a test wants, as slowly as it wants."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
STREAM_HEAD = JSON_HEAD.replace(b"application/json", b"text/event-stream")


@dataclass
class RawHost:
    """Where it is, and what came and went."""

    url: str
    heads: list[bytes] = field(default_factory=list)
    num_drops: int = 0


@contextmanager
def raw_host(answer: bytes, *, drop: bytes = b"", every_s: float = 0.05) -> Iterator[RawHost]:
    """Each connection gets the answer, and then `drop` again and again until its client leaves."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = RawHost(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")

        def serve(client: socket.socket) -> None:
            with client, suppress(OSError):
                host.heads.append(client.recv(65536))
                client.sendall(answer)
                while drop:
                    time.sleep(every_s)
                    client.sendall(drop)
                    host.num_drops += 1
                client.shutdown(socket.SHUT_WR)
                client.recv(65536)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    args = (listener.accept()[0],)
                    threading.Thread(target=serve, args=args, daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield host
        listener.shutdown(socket.SHUT_RDWR)
