"""The way into the OpenAI API: an ASGI application around the engine's own (worker, event loop).

What holds for every engine and every route is done here, once: key, route, body, limits, the name
of the model, request ids, errors, counting, and what becomes of a request whose engine dies.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gpupool.access import CLIENT_LEFT, AccessLog
from gpupool.api import cors
from gpupool.api.json_body import read_object, refuse_half_pairs, refuse_large_numbers
from gpupool.api.openai.answer import Answer
from gpupool.api.openai.checks import Ask, Body, check
from gpupool.api.openai.inner import Behind, read_part, run
from gpupool.api.openai.models import describe_models
from gpupool.api.openai.routes import Route, find, is_models
from gpupool.api.openai.spread import merge, split
from gpupool.batch import OpenAIJob
from gpupool.call import Call, current_call
from gpupool.clock import RequestClock
from gpupool.errors import (
    BadRequest,
    Cancelled,
    EngineDead,
    Moved,
    NotFound,
    RequestError,
    TooLarge,
)
from gpupool.exchange import Message, Receive, Send
from gpupool.fanout import Fanout
from gpupool.keys import KeyRing
from gpupool.request_id import accept
from gpupool.totals import GENERATING_ROUTES, Totals, label_of

log = logging.getLogger(__name__)

KEY_HEADERS = (b"authorization", b"x-api-key")
MAX_COORDINATORS = 256  # threads, each made when it is needed first


class Gate:
    """One replica's. Any number of requests at a time, on one event loop."""

    def __init__(
        self,
        behind: Behind,
        keys: KeyRing,
        totals: Totals,
        fanout: Fanout | None = None,
        *,
        max_body_bytes: int,
        cors_origins: Collection[str] = (),
        access: AccessLog | None = None,
    ) -> None:
        self._access = access or AccessLog()
        self._behind = behind
        self._keys = keys
        self._totals = totals
        self._fanout = fanout
        self._coordinators = ThreadPoolExecutor(MAX_COORDINATORS, "coordinator")
        self._max_body_bytes = max_body_bytes
        self._cors_origins = cors_origins
        self._since = int(time.time())

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers every request of a path that `routes.is_ours`."""
        call = current_call()
        began = call.history.since or time.monotonic()
        headers = dict(scope["headers"])
        given_id = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = call.history.seen.request_id or accept(given_id)
        clock = call.clock = RequestClock(self._totals, began)
        answer = Answer(send, request_id, call, is_dead=self._behind.is_dead)
        origin = headers.get(b"origin", b"").decode("latin-1")
        answer.headers = cors.allowing(origin, self._cors_origins)
        has_left = False
        try:
            await self._answer(scope, headers, receive, answer, clock, call)
        except Moved:
            raise
        except RequestError as error:
            has_left = call.is_gone and not answer.is_complete
            await answer.fail(error)
        except Exception as error:
            log.exception("unexpected error on %s request=%s", scope["path"], request_id)
            await answer.fail(error)
        except asyncio.CancelledError:
            if call.is_gone:
                self._access.write(call, scope["path"], CLIENT_LEFT, request_id)
            raise
        self._count(scope["path"], answer, began)
        has_left = has_left or (call.is_gone and not answer.is_complete)
        status = CLIENT_LEFT if has_left else answer.status
        self._access.write(call, scope["path"], status, request_id)

    async def _answer(
        self,
        scope: Message,
        headers: dict[bytes, bytes],
        receive: Receive,
        answer: Answer,
        clock: RequestClock,
        call: Call,
    ) -> None:
        self._keys.require(*(headers.get(name, b"").decode("latin-1") for name in KEY_HEADERS))
        path = scope["path"]
        if is_models(path):
            _require_method(scope, "GET")
            await answer.give(describe_models(path, self._behind.able, self._since))
            return
        route = self._route(scope["raw_path"].decode("latin-1"))
        _require_method(scope, "POST")
        _require_json(headers)
        raw = await self._read(receive)
        body = read_object(raw)
        refuse_half_pairs(raw, body)
        ask = check(route, body, self._behind.able)
        refuse_large_numbers(raw, body)
        is_whole = route.path in self._behind.able.whole
        parts = [] if is_whole else split(route, body, ask)
        if parts and self._fanout is not None:
            await answer.give(await self._spread(route, body, parts, clock, call))
            return
        call.hold_slots(1 if is_whole else ask.num_sequences)
        answer.clock = clock.start_sequence()
        answer.keeps_usage = ask.wants_usage
        body = _with_usage(route, body, ask)
        await run(self._behind, route.path, body, answer.request_id, receive, answer.send)
        self._move_if_dead(answer, call)

    async def _spread(
        self, route: Route, body: Body, parts: Sequence[Body], clock: RequestClock, call: Call
    ) -> dict[str, Any]:
        """Every part on whichever worker has a slot for it."""
        assert self._fanout is not None
        jobs = [OpenAIJob(route.path, part) for part in parts]
        results = await asyncio.get_running_loop().run_in_executor(
            self._coordinators, self._fanout.run, jobs, call, clock
        )
        return merge(route, body, [read_part(result.outcome) for result in results])

    def _route(self, path: str) -> Route:
        """By the very spelling by which admission and the limits of keys know it."""
        route = find(path)
        if route is None:
            raise NotFound(f"no such route: {path[:200]}", code="no_route")
        if path not in self._behind.able.fields:
            needs = self._behind.able.absent.get(path, "docs/openai.md says which has")
            raise BadRequest(
                f"this pool's engine, or its model, has no {path}; {needs}", code="unsupported"
            )
        return route

    async def _read(self, receive: Receive) -> bytes:
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Cancelled("the client closed the connection")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > self._max_body_bytes:
                raise TooLarge(f"the request body is larger than {self._max_body_bytes} bytes")
        return b"".join(parts)

    def _move_if_dead(self, answer: Answer, call: Call) -> None:
        """A request of which nothing was answered is run by another worker; raises Moved."""
        if answer.is_complete:
            return
        if not answer.has_begun and self._behind.is_dead():
            call.move()
        if self._behind.is_dead():
            raise EngineDead("the engine died while it ran this request; try again")
        if answer.has_begun:
            raise RequestError("the engine ended this answer before it was whole")

    def _count(self, path: str, answer: Answer, began: float) -> None:
        """Once, when the answer is decided."""
        label = label_of(path)
        self._totals.request(label, answer.status)
        self._totals.tokens(prompt=answer.prompt_tokens, generated=answer.generated_tokens)
        if answer.status == 200 and label in GENERATING_ROUTES:
            self._totals.observe("request_duration_seconds", time.monotonic() - began)


def _require_method(scope: Message, method: str) -> None:
    if scope["method"] != method and not (method == "GET" and scope["method"] == "HEAD"):
        error = BadRequest(f"{scope['path'][:200]} takes {method}, not {scope['method']}")
        error.status = 405
        raise error


def _require_json(headers: dict[bytes, bytes]) -> None:
    """Anything else is what a browser sends for a page that must not ask here."""
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind != b"application/json" and not kind.endswith(b"+json"):
        error = BadRequest(
            f"the Content-Type is {kind.decode('latin-1')[:60]!r}; send application/json"
        )
        error.status = 415
        raise error


def _with_usage(route: Route, body: Body, ask: Ask) -> Body:
    """Streams tell their usage always, to be counted; clients see it if they asked for it."""
    if not ask.stream or ask.wants_usage or route.kind not in ("chat", "completion"):
        return body
    return {**body, "stream_options": {**(body.get("stream_options") or {}), "include_usage": True}}
