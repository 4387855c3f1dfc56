"""The Flask application around one replica (worker process; a single instance and Ray too)."""

from __future__ import annotations

import logging
import time

from flask import Flask, Response, current_app, g, json, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.exceptions import NotFound as NoRoute

from gpupool import request_id
from gpupool.access import AccessLog
from gpupool.api import cors, health, infer, metrics, openapi, page, pool
from gpupool.api.clock import whole_at
from gpupool.api.keys import require_key
from gpupool.call import current_call
from gpupool.errors import BadRequest, Forbidden, NotFound, RequestError, render_error
from gpupool.replica import Boot, Replica
from gpupool.totals import GENERATING_ROUTES, PoolTotals, Totals

log = logging.getLogger(__name__)

OPEN_ENDPOINTS = frozenset({"health.livez", "health.readyz", "health.health", "page.file"})


def create_app(boot: Boot) -> Flask:
    """The application; nothing is loaded before the host calls load() of the replica, which is
    app.extensions["gpupool"]."""
    app = Flask("gpupool", static_folder=None)
    app.extensions["gpupool"] = Replica(boot)
    app.extensions["gpupool.totals"] = PoolTotals(1)[0]
    app.extensions["gpupool.access"] = AccessLog()
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.register_blueprint(health.blueprint)
    app.register_blueprint(infer.blueprint)
    app.register_blueprint(metrics.blueprint)
    app.register_blueprint(openapi.blueprint)
    app.register_blueprint(page.blueprint)
    app.register_blueprint(pool.blueprint)
    app.before_request(_begin)
    app.before_request(_answer_preflight)
    app.before_request(page.show)
    app.before_request(_require_key)
    app.after_request(_mark)
    app.after_request(_count)
    app.register_error_handler(Exception, _answer_error)
    return app


def _answer_preflight() -> Response | None:
    """A browser asks without a key whether a page may send a request with one."""
    if request.method != "OPTIONS":
        return None
    asked = request.headers.get("Access-Control-Request-Headers", "")
    headers = cors.preflight(
        request.headers.get("Origin", ""), asked, _replica().settings.cors_origin
    )
    if headers is None:
        raise Forbidden("no page may ask here, unless it is named when the pool is started")
    return Response(status=204, headers=headers)


def _replica() -> Replica:
    replica: Replica = current_app.extensions["gpupool"]
    return replica


def _begin() -> None:
    whole_at()
    seen = current_call().history.seen
    g.request_id = seen.request_id or request_id.accept(request.headers.get(request_id.HEADER, ""))


def _mark(response: Response) -> Response:
    """What every answer has."""
    if "request_id" in g:
        response.headers[request_id.HEADER] = g.request_id
    response.headers["X-Content-Type-Options"] = "nosniff"
    origin = request.headers.get("Origin", "")
    response.headers.extend(cors.allowing(origin, _replica().settings.cors_origin))
    return response


def _require_key() -> None:
    """Deny by default: decided on the matched route, so an unknown path needs a key as well."""
    if request.endpoint not in OPEN_ENDPOINTS:
        require_key()


def _count(response: Response) -> Response:
    """Every request that is answered here, once, when its answer is decided."""
    if current_call().is_moved:
        return response
    totals: Totals = current_app.extensions["gpupool.totals"]
    route = request.url_rule.rule if request.url_rule is not None else request.path
    totals.request(route, response.status_code)
    if route in GENERATING_ROUTES and response.status_code == 200:
        totals.observe("request_duration_seconds", time.monotonic() - whole_at())
    access: AccessLog = current_app.extensions["gpupool.access"]
    access.write(current_call(), route, response.status_code, g.get("request_id", "-"))
    return response


def _answer_error(error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = _from_werkzeug(error)
    status, headers, body = render_error(error)
    if not isinstance(error, RequestError):
        log.error(
            "unexpected error on %s %s request=%s",
            request.method,
            request.path,
            g.get("request_id"),
            exc_info=error,
        )
    response = Response(json.dumps(body), status, mimetype="application/json")
    response.headers.extend(headers)
    return response


def _from_werkzeug(error: HTTPException) -> RequestError:
    if isinstance(error, NoRoute):
        return NotFound(f"no such route: {request.method} {request.path}", code="no_route")
    answer = BadRequest(error.description or error.name)
    answer.status = error.code or 400
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        allowed = ", ".join(sorted({*error.valid_methods} - {"HEAD", "OPTIONS"}))
        answer = BadRequest(f"{request.path} takes {allowed}, not {request.method}")
        answer.status = 405
    return answer
