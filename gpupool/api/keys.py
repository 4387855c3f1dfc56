"""Whether a request came with a valid API key (worker process)."""

from __future__ import annotations

from flask import current_app, request

from gpupool.replica import Replica


def has_key() -> bool:
    """True also where the pool has no keys."""
    replica: Replica = current_app.extensions["gpupool"]
    headers = request.headers
    return replica.keys.fits(headers.get("Authorization", ""), headers.get("X-Api-Key", ""))
