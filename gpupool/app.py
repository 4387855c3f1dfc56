"""The Flask application around one replica (worker process; a single instance and Ray too)."""

from __future__ import annotations

import logging

from flask import Flask, Response, current_app, json, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.exceptions import NotFound as NoRoute

from gpupool.api import health, infer
from gpupool.errors import BadRequest, NotFound, RequestError, Unauthorized, render_error
from gpupool.keys import KeyRing
from gpupool.replica import Boot, Replica

log = logging.getLogger(__name__)

OPEN_ENDPOINTS = frozenset({"health.livez", "health.readyz"})


def create_app(boot: Boot) -> Flask:
    """The application; nothing is loaded before the host calls load() of the replica, which is
    app.extensions["gpupool"]."""
    app = Flask("gpupool", static_folder=None)
    app.extensions["gpupool"] = Replica(boot)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.register_blueprint(health.blueprint)
    app.register_blueprint(infer.blueprint)
    app.before_request(_require_key)
    app.register_error_handler(Exception, _answer_error)
    return app


def _require_key() -> None:
    """Deny by default: decided on the matched route, so an unknown path needs a key as well."""
    if request.endpoint in OPEN_ENDPOINTS:
        return
    replica: Replica = current_app.extensions["gpupool"]
    if not KeyRing(replica.settings.api_key).fits(request.headers.get("Authorization", "")):
        raise Unauthorized(
            "this route needs a valid API key; send it as 'Authorization: Bearer KEY'",
            code="invalid_api_key",
        )


def _answer_error(error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = _from_werkzeug(error)
    status, headers, body = render_error(error)
    if not isinstance(error, RequestError):
        log.error("unexpected error on %s %s", request.method, request.path, exc_info=error)
    response = Response(json.dumps(body), status, mimetype="application/json")
    response.headers.extend(headers)
    return response


def _from_werkzeug(error: HTTPException) -> RequestError:
    if isinstance(error, NoRoute):
        return NotFound(f"no such route: {request.method} {request.path}", code="no_route")
    answer = BadRequest(error.description or error.name)
    answer.status = error.code or 400
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        allowed = ", ".join(sorted(error.valid_methods))
        answer = BadRequest(f"{request.path} takes {allowed}, not {request.method}")
        answer.status = 405
    return answer
