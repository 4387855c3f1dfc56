"""Whether a request's Host and Origin are fit to be answered (pure; asked by the worker's intake).

A page of a browser can reach a pool that listens on the loopback only, either straight or under a
name of its own that it lets point there (DNS rebinding). Browsers tell the page's origin with every
POST, so a POST from a page that nobody named is refused. Nothing is ever decided by the Host.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from ipaddress import ip_address

from gpupool.api.cors import ANY
from gpupool.errors import BadRequest, Forbidden

HOST = re.compile(r"(?P<name>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


def check_sender(
    method: str,
    version: tuple[int, int],
    headers: Iterable[tuple[str, str]],
    origins: Collection[str],
) -> None:
    """BadRequest where the Host is none, Forbidden where a browser asks for a page that
    `origins`, those of --cors_origin, do not have. Names of headers are upper-case."""
    found = {name: value for name, value in headers if name in ("HOST", "ORIGIN")}
    host = found.get("HOST")
    if host is None and version >= (1, 1):
        raise BadRequest("the request has no Host header, which HTTP/1.1 requires")
    if host and not HOST.fullmatch(host):
        raise BadRequest(f"the Host header {host[:100]!r} is no name or address with a port")
    origin = found.get("ORIGIN")
    if origin is None or method != "POST" or ANY in origins or origin in origins:
        return
    if not _is_own_page(origin, host or ""):
        raise Forbidden(
            f"a page of {origin[:100]!r} asks, and no page may unless it is named; start the pool "
            "with --cors_origin to allow it"
        )


def _is_own_page(origin: str, host: str) -> bool:
    """Whether the page came from this pool, under a name that nobody else can give it."""
    match = HOST.fullmatch(host)
    return match is not None and origin == f"http://{host}" and _is_ours(match["name"])


def _is_ours(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
