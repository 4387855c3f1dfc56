"""What every request passes on its way into Serve (Serve's proxy process, its event loop).

The proxy reads HTTP and routes; it knows nothing of limits, of our errors, or of probes that must
not wait. That is done here, around it: a request is read whole before it counts, the routes that
tell of the pool are asked of all replicas past every queue, what a dead replica had is asked of the
next one, and each error has the one shape.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import time
from collections.abc import Mapping
from typing import Any, cast

from gpupool import load_times
from gpupool.api import CONTROL_PATHS, may_be_refused
from gpupool.api.cors import allowing
from gpupool.errors import (
    EngineDead,
    GpupoolError,
    NotFound,
    Overloaded,
    RequestError,
    Unavailable,
    render_error,
)
from gpupool.exchange import App, Message, Receive, Send
from gpupool.outgoing import render_json
from gpupool.ray_pool import request_body
from gpupool.ray_pool.attempt import Attempt
from gpupool.ray_pool.control import READY_PATHS, join
from gpupool.ray_pool.flask_call import Headers, Reply
from gpupool.ray_pool.names import APP, DEPLOYMENT
from gpupool.ray_pool.rules import DoorRules
from gpupool.request_id import HEADER, accept
from gpupool.sender import check_sender

log = logging.getLogger(__name__)

DRAIN_PATH = "/-/gpupool/drain"
SECRET_HEADER = b"x-gpupool-secret"
ID_HEADER = HEADER.lower().encode()
MAX_MOVES = 2
ASK_AGAIN_S = 0.2
CONTROL_TIMEOUT_S = 10.0
HIDDEN_S = 1.0
LOOK_AGAIN_S = 0.05
RETRY_AFTER_S = 1


class Door:
    """One for each proxy. Any number of requests at a time."""

    def __init__(self, app: App, rules: DoorRules) -> None:
        self._app = app
        self._rules = rules
        self._num_inside = 0
        self._is_draining = False
        self._suspects = asyncio.Lock()
        """Held while one runs under which two replicas have died, so that the one that kills
        replicas, if there is one, does not take the others along a third time."""
        self._handle: Any = None
        self._has_replicas = False
        """Whether some answered when they were asked last."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = accept(headers.get(ID_HEADER, b"").decode("latin-1"))
        others = [(name, value) for name, value in scope["headers"] if name != ID_HEADER]
        scope = {**scope, "headers": [*others, (ID_HEADER, request_id.encode())]}
        attempt = Attempt(send, request_id)
        try:
            await self._let_in(scope, headers, receive, attempt)
        except RequestError as error:
            await self._refuse(error, headers, attempt)
        except Exception as error:
            log.exception("unexpected error on %s request=%s", scope["path"], request_id)
            await self._refuse(error, headers, attempt)

    async def _let_in(
        self, scope: Message, headers: Mapping[bytes, bytes], receive: Receive, attempt: Attempt
    ) -> None:
        check_sender(
            scope["method"],
            _version(scope),
            [(name.decode().upper(), value.decode("latin-1")) for name, value in scope["headers"]],
            self._rules.cors_origins,
        )
        path = scope["raw_path"].decode("latin-1")
        if path == DRAIN_PATH:
            await self._drain(headers, attempt)
        elif path == "/livez":
            await _give_json({"status": "live"}, attempt)
        elif path in CONTROL_PATHS and scope["method"] in ("GET", "HEAD"):
            await _give(await self._control(path, scope), attempt)
        elif self._is_draining:
            raise Unavailable(
                "the pool is being stopped", retry_after_s=RETRY_AFTER_S, code="draining"
            )
        else:
            body = await request_body.read(receive, headers, self._rules)
            if body is None:
                return
            self._num_inside += 1
            try:
                await self._ask(scope, body, receive, attempt)
            finally:
                self._num_inside -= 1

    async def _ask(self, scope: Message, body: bytes, receive: Receive, attempt: Attempt) -> None:
        """Ask replicas until one has answered, as often as that is worth it."""
        path, until = scope["path"], time.monotonic() + self._rules.max_wait_s
        num_moves = 0
        while True:
            replay = request_body.Replay(body, receive)
            async with self._suspects if num_moves == MAX_MOVES else contextlib.nullcontext():
                await attempt.run(self._app, dict(scope), replay)
            if attempt.is_answered or replay.is_gone:
                return
            if attempt.is_full:
                # Clients of /infer take an error for the result, so theirs wait.
                if may_be_refused(path) or time.monotonic() >= until:
                    raise Overloaded(
                        "all slots are taken and as many requests wait as may; try again later",
                        retry_after_s=RETRY_AFTER_S,
                        code="overloaded",
                    )
                await asyncio.sleep(ASK_AGAIN_S)
            elif attempt.is_refused:
                raise _not_ready()
            else:
                num_moves += 1
                if num_moves > MAX_MOVES:
                    raise EngineDead("the replica died while it ran this request")
                log.warning("a replica died under request=%s, which another runs", attempt.id)

    async def _control(self, path: str, scope: Message) -> Reply:
        """Every replica's own answer as one. `broadcast` goes past Serve's queues and limits."""
        kept = ("method", "path", "raw_path", "query_string", "http_version", "scheme", "headers")
        sent = {"type": "http", "server": scope["server"], **{key: scope[key] for key in kept}}
        # Serve hides a replica for the moment in which it learns a new limit.
        until = time.monotonic() + HIDDEN_S
        while True:
            if replies := await self._ask_all(path, sent):
                self._has_replicas = True
                return join(path, replies)
            if not self._has_replicas or time.monotonic() >= until:
                break
            await asyncio.sleep(LOOK_AGAIN_S)
        self._has_replicas = False
        if path in READY_PATHS:
            return _none_ready(self._rules)
        raise _not_ready()

    async def _ask_all(self, path: str, sent: Message) -> list[Reply]:
        try:
            # One of its own: who uses the proxy's first decides what that is good for.
            self._handle = self._handle or _handle()
            asked = self._handle.broadcast("control", sent)
            found = await asked.results_async(timeout_s=CONTROL_TIMEOUT_S, return_exceptions=True)
        except Exception as error:  # no application yet, no replica, all dead: no common base
            log.info("no replica answers %s: %s", path, type(error).__name__)
            return []
        return [reply for reply in found if isinstance(reply, Reply)]

    async def _drain(self, headers: Mapping[bytes, bytes], attempt: Attempt) -> None:
        """The launcher's: let nobody in any more, and tell how many are inside."""
        given = headers.get(SECRET_HEADER, b"")
        if not hmac.compare_digest(given, self._rules.secret.encode()):
            raise NotFound(f"no such route: {DRAIN_PATH}", code="no_route")
        self._is_draining = True
        await _give_json({"inside": self._num_inside}, attempt)

    async def _refuse(
        self, error: Exception, headers: Mapping[bytes, bytes], attempt: Attempt
    ) -> None:
        status, more, content = render_error(error)
        more |= allowing(headers.get(b"origin", b"").decode("latin-1"), self._rules.cors_origins)
        given = [(name.lower().encode(), value.encode("latin-1")) for name, value in more.items()]
        await attempt.fail(status, [*_json_headers(), *given], render_json(content))


def _handle() -> Any:
    from ray.serve.handle import DeploymentHandle

    return DeploymentHandle(DEPLOYMENT, APP)


def _not_ready() -> Unavailable:
    return Unavailable(
        "no replica is ready; try again, or ask /readyz",
        retry_after_s=load_times.DEFAULT_RETRY_AFTER_S,
        code="not_ready",
    )


def _none_ready(rules: DoorRules) -> Reply:
    """As a worker says it."""
    content: dict[str, Any] = {"status": "not ready"}
    if not rules.has_keys:
        content |= {"ready": 0, "workers": []}
    retry_after = (b"retry-after", str(load_times.DEFAULT_RETRY_AFTER_S).encode())
    return Reply(503, [*_json_headers(), retry_after], json.dumps(content).encode())


def _version(scope: Message) -> tuple[int, int]:
    major, _, minor = scope["http_version"].partition(".")
    return int(major), int(minor or 0)


def _json_headers() -> Headers:
    return [(b"content-type", b"application/json"), (b"x-content-type-options", b"nosniff")]


async def _give_json(content: Mapping[str, Any], attempt: Attempt) -> None:
    await _give(Reply(200, _json_headers(), json.dumps(content).encode()), attempt)


async def _give(reply: Reply, attempt: Attempt) -> None:
    await attempt.give(reply.status, reply.headers, reply.body)


def make_middlewares() -> list[Any]:
    """Called by each proxy of Serve's when it starts, by the name that the launcher gave it."""
    from starlette.middleware import Middleware

    rules = DoorRules.from_environment()
    if rules is None:
        raise GpupoolError("this proxy was not told the rules of its door")
    return [Middleware(cast(Any, Door), rules=rules)]
