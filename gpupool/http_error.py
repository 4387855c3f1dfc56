"""Error answers for requests that never reach the application (worker process)."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable
from http.client import responses

from gunicorn.http.errors import (
    ExpectationFailed,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
    UnsupportedTransferCoding,
)

from gpupool.errors import RequestError, render_error
from gpupool.request_id import HEADER

log = logging.getLogger(__name__)

_STATUS: tuple[tuple[type[Exception], int, str], ...] = (
    (LimitRequestLine, 414, "the request line is too long"),
    (LimitRequestHeaders, 431, "the request has too many or too large headers"),
    (ExpectationFailed, 417, "only the expectation 100-continue is known"),
    (UnsupportedTransferCoding, 501, "only the transfer coding chunked is known"),
    (ParseException, 400, "the request is not valid HTTP"),
)


class _Unreadable(RequestError):
    type = "invalid_request_error"


def send_error(
    client: socket.socket, error: Exception, request_id: str, count: Callable[[int], None]
) -> None:
    """Write a whole JSON error response and announce the close; the socket may be gone. `count`
    is told the status first."""
    status, headers, body = render_error(_as_request_error(error))
    count(status)
    content = json.dumps(body).encode()
    headers |= {
        "Content-Type": "application/json",
        "Content-Length": str(len(content)),
        "Connection": "close",
        HEADER: request_id,
    }
    head = f"HTTP/1.1 {status} {responses.get(status, 'Error')}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    try:
        client.sendall(head.encode("ascii") + b"\r\n" + content)
    except OSError as gone:
        log.debug("the client left before its error answer: %s", gone)


def _as_request_error(error: Exception) -> Exception:
    for kind, status, message in _STATUS:
        if isinstance(error, kind):
            log.info("unreadable request: %s %s", type(error).__name__, error)
            answer = _Unreadable(message, code=type(error).__name__)
            answer.status = status
            return answer
    if not isinstance(error, RequestError):
        log.error("error outside the application", exc_info=error)
    return error
