"""Our exceptions, and the one place that turns any exception into the wire's error body.

Imported by every process; imports nothing of ours.
"""

from __future__ import annotations

from typing import Any


class GpupoolError(Exception):
    """Base of all errors this project raises on purpose; the message is fit to be shown."""


class ConfigError(GpupoolError):
    """What the operator asked for cannot be: one line, exit 2, before any fork."""


class NotGranted(GpupoolError):
    """The slice's GPUs are held or used by somebody else; the message says by whom."""


class RequestError(GpupoolError):
    """Base of the errors that answer one HTTP request."""

    status = 500
    type = "server_error"
    reason = ""
    """For the metrics, where a status alone does not say it."""
    retry_after_s: int | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s
        self.headers: dict[str, str] = {}
        """More of them, for the answer."""


class BadRequest(RequestError):
    """The caller's fault; names the parameter where there is one."""

    status = 400
    type = "invalid_request_error"


class Unauthorized(RequestError):
    """No API key, or a wrong one."""

    status = 401
    type = "authentication_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="invalid_api_key")
        self.headers["WWW-Authenticate"] = "Bearer"


class Forbidden(RequestError):
    """Not for this caller, with or without a key."""

    status = 403
    type = "permission_error"


class NotFound(RequestError):
    """No such route or model."""

    status = 404
    type = "not_found_error"


class ReadTimeout(RequestError):
    """The client did not send its request in time."""

    status = 408
    type = "invalid_request_error"


class TooLarge(RequestError):
    """The body is over the limit."""

    status = 413
    type = "invalid_request_error"


class Overloaded(RequestError):
    """The pool is full."""

    status = 429
    type = "overloaded_error"
    reason = "full"


class KeyLimited(RequestError):
    """The request's API key has used up what it may; the pool may have room for others."""

    status = 429
    type = "rate_limit_error"
    reason = "key_limit"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message, code="key_limit", retry_after_s=retry_after_s)


class Unavailable(RequestError):
    """Nothing can answer now: loading, draining, or the engine died."""

    status = 503
    type = "unavailable_error"


class EngineError(RequestError):
    """The engine failed on this one request; it still serves the others."""

    status = 500
    type = "engine_error"


class HostError(RequestError):
    """The host of a hosted model failed on this request, or refuses the pool. Also where the
    status is 503, this worker is not to be replaced for it: hence no Unavailable."""

    status = 502
    type = "host_error"


class EngineDead(Unavailable):
    """The engine is gone and the worker will be replaced; other replicas may answer."""

    retry_after_s = 1


class Moved(Unavailable):
    """Another worker will answer in place of this one, which cannot any more."""


class Cancelled(RequestError):
    """Nobody waits for this answer any more."""

    status = 499
    type = "cancelled"


def render_error(error: BaseException) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, extra headers and the JSON body for any exception.

    An exception that is not a RequestError is answered as a plain 500: a library's own text
    may hold paths, prompts or keys, so it goes to the log and never to the client.
    """
    if not isinstance(error, RequestError):
        error = RequestError("internal error; the server's log has the details")
    headers = dict(error.headers)
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    body = {
        "error": {
            "message": str(error),
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }
    return error.status, headers, body
