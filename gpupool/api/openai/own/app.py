"""The application itself: a path, its handler, and the end of both (worker, event loop)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from gpupool.api.openai.own.fields import fields_for, refuse_others
from gpupool.api.openai.own.query import Query
from gpupool.api.openai.own.reply import render
from gpupool.api.openai.own.runner import Runner
from gpupool.engines.base import Engine
from gpupool.errors import NotFound
from gpupool.exchange import Message, Receive, Send
from gpupool.outgoing import Outgoing
from gpupool.tasks import unless_gone

Handlers = Mapping[str, Callable[[Query], Awaitable[None]]]


def find_handlers() -> Handlers:
    """Blocks for a second at the first call."""
    from gpupool.api.openai.own.handlers import HANDLERS

    return HANDLERS


class OwnApp:
    """Of one loaded engine, on one event loop. Stands behind the gate, which has checked the body
    in scope["state"]["body"] and answers the errors that are raised here."""

    def __init__(self, engine: Engine, model_names: Sequence[str]) -> None:
        self._runner = Runner(engine)
        self._model_names = tuple(model_names)
        self._handlers: Handlers | None = None
        self.fields = fields_for(engine)
        """By the path of a route: the names its body may have."""

    def is_lost(self) -> bool:
        """See engines.base.SpeaksOpenAI."""
        return self._runner.is_lost

    def close(self) -> None:
        """Nothing comes any more."""
        self._runner.close()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request; a client that leaves ends it, and its work in the engine."""
        path, body = scope["path"], scope["state"]["body"]
        if path not in self.fields:
            raise NotFound(f"no such route: {path[:200]}", code="no_route")
        refuse_others(body, self.fields[path])
        if self._handlers is None:
            self._handlers = await self._runner.off_loop(find_handlers)
        name = body.get("model") or self._model_names[0]
        query = Query(body, self._runner, Outgoing(send, render), name)
        await unless_gone(self._handlers[path](query), receive)
