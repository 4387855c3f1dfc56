"""Whether the Hugging Face hub can be asked at all (preflight and worker processes)."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

CONNECT_S = 3.0


def is_reachable(endpoint: str) -> bool:
    """Whether the hub answers; its client would try for half a minute, for each file. Behind a
    proxy only the client itself can tell."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True
    parts = urlsplit(endpoint)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname or "", port), CONNECT_S).close()
    except OSError:
        return False
    return True
