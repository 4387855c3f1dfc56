"""How long one write to a socket may block (worker process, any thread)."""

from __future__ import annotations

import socket
import struct


def limit_send(sock: socket.socket, seconds: int) -> None:
    """Let the kernel end a write that a peer holds up; unlike a timeout of Python's, this does not
    make the socket non-blocking."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", seconds, 0))
