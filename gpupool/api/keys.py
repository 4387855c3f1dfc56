"""Whether a request came with a valid API key (worker process)."""

from __future__ import annotations

import hmac
from hashlib import sha256

from flask import current_app, request

from gpupool.replica import Replica


def has_key() -> bool:
    """True also where the pool has no keys."""
    replica: Replica = current_app.extensions["gpupool"]
    keys = replica.settings.api_key
    if not keys:
        return True
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    digest = sha256(given.strip().encode("utf-8", "replace")).digest()
    # Every key is compared, in constant time, so that the time tells nothing about any.
    matches = [hmac.compare_digest(digest, sha256(key.encode()).digest()) for key in keys]
    return scheme.lower() == "bearer" and any(matches)
