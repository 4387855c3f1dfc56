"""Whether the Hugging Face hub can be asked at all (preflight and worker processes)."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

CONNECT_S = 3.0
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def is_reachable(endpoint: str) -> bool:
    """Whether the hub, or the proxy before it, answers at all; the hub's client would try for half
    a minute, for each file."""
    proxy = next((value for name in PROXIES if (value := os.environ.get(name))), None)
    address = proxy or endpoint
    try:
        parts = urlsplit(address if "//" in address else f"//{address}")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), CONNECT_S).close()
    except (OSError, ValueError):  # not reached, or no address at all
        return False
    return True
