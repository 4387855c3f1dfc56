"""The Flask application, called for one request of an ASGI server (replica process, handler
threads).

Its answers are whole when they come, so nothing streams through a thread, and none is left behind
by a client that goes: whoever waits in it waits on the call, which is told. What streams is the
OpenAI API's, and never comes here.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from typing import Any

from flask import Flask

from gpupool.call import Call, answering
from gpupool.errors import Moved
from gpupool.exchange import Message

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    status: int
    headers: Headers
    body: bytes


def call_flask(app: Flask, scope: Message, body: bytes, call: Call) -> Reply:
    """Blocks until the answer is there. Raises Moved if another replica is to answer."""
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(status: str, headers: list[tuple[str, str]], *_: Any) -> Any:
        started.append((status, headers))

    with answering(call):
        parts = app(environ_of(scope, body), start_response)
        try:
            content = b"".join(parts)
        finally:
            if hasattr(parts, "close"):
                parts.close()
    if call.is_moved:
        raise Moved("another replica answers")
    status, headers = started[-1]
    given = [(name.lower().encode("latin-1"), v.encode("latin-1")) for name, v in headers]
    return Reply(int(status[:3]), given, content)


def environ_of(scope: Message, body: bytes) -> dict[str, Any]:
    """PEP 3333's view of an ASGI scope."""
    host, port = scope.get("server") or ("localhost", 80)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": scope["path"].encode().decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": str(host),
        "SERVER_PORT": str(port or 80),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "REMOTE_ADDR": (scope.get("client") or ("",))[0],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if "_" in name:  # would pass for another header: X_Api_Key for X-Api-Key
            continue
        name = name.upper().replace("-", "_")
        key = name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    environ["CONTENT_LENGTH"] = str(len(body))
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    return environ
