"""Whether a request came with a valid API key (worker process)."""

from __future__ import annotations

from flask import current_app, request

from gpupool.keys import KeyRing
from gpupool.replica import Replica


def has_key() -> bool:
    """True also where the pool has no keys."""
    replica: Replica = current_app.extensions["gpupool"]
    return KeyRing(replica.settings.api_key).fits(request.headers.get("Authorization", ""))
