"""Which pages may ask this pool from a browser: none, unless the operator names them (pure)."""

from __future__ import annotations

from collections.abc import Collection

ANY = "*"
METHODS = "GET, POST"
MAX_AGE_S = 600


def allowing(origin: str, origins: Collection[str]) -> dict[str, str]:
    """Headers of an answer to a page of this origin; none if it may not read it. Cookies are never
    part of it: whoever has no key gets nothing with one either."""
    if not origin or not origins:
        return {}
    if ANY in origins:
        return {"Access-Control-Allow-Origin": ANY, "Access-Control-Expose-Headers": "X-Request-Id"}
    headers = {"Vary": "Origin"}
    if origin in origins:
        headers |= {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": "X-Request-Id",
        }
    return headers


def preflight(origin: str, asked_headers: str, origins: Collection[str]) -> dict[str, str] | None:
    """Headers of the answer to OPTIONS, which a browser asks before it sends what a form could
    not; None: the page may not ask."""
    allowed = allowing(origin, origins)
    if "Access-Control-Allow-Origin" not in allowed:
        return None
    return allowed | {
        "Access-Control-Allow-Methods": METHODS,
        "Access-Control-Allow-Headers": asked_headers or "Authorization, Content-Type",
        "Access-Control-Max-Age": str(MAX_AGE_S),
    }
