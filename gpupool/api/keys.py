"""Whether a request came with a valid API key (worker process)."""

from __future__ import annotations

from flask import current_app, request

from gpupool.replica import Replica


def has_key() -> bool:
    """True also where the pool has no keys."""
    replica: Replica = current_app.extensions["gpupool"]
    return replica.keys.fits(request.headers.get("Authorization", ""))
