"""Who may ask: the API keys, compared in constant time (worker process, any thread)."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from hashlib import sha256


class KeyRing:
    """The keys of one pool; without any, everybody may ask."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [sha256(key.encode()).digest() for key in keys]

    def fits(self, authorization: str) -> bool:
        """Whether an Authorization header holds one of the keys."""
        if not self._digests:
            return True
        scheme, _, given = authorization.partition(" ")
        digest = sha256(given.strip().encode("utf-8", "replace")).digest()
        # Every key is compared, so that the time tells nothing about any.
        matches = [hmac.compare_digest(digest, other) for other in self._digests]
        return scheme.lower() == "bearer" and any(matches)

    def fit(self, headers: Iterable[tuple[str, str]]) -> bool:
        """The same for the headers of a request that gunicorn parsed (names in upper case)."""
        return self.fits(next((v for name, v in headers if name == "AUTHORIZATION"), ""))
