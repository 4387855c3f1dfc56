"""Whether a request came with a valid API key (worker process)."""

from __future__ import annotations

from flask import current_app, request

from gpupool.replica import Replica


def has_key() -> bool:
    """True also where the pool has no keys."""
    return _replica().keys.fits(*_given())


def require_key() -> None:
    """Unauthorized unless `has_key`."""
    _replica().keys.require(*_given())


def _replica() -> Replica:
    replica: Replica = current_app.extensions["gpupool"]
    return replica


def _given() -> tuple[str, str]:
    return request.headers.get("Authorization", ""), request.headers.get("X-Api-Key", "")
