"""The OpenAI API of a hosted model, as an application (worker process, the engine's loop).

It passes bodies to the host and answers back; the pool's name of the model stands in both places
of the host's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from gpupool.engines.saas_args import SaasArgs
from gpupool.engines.saas_fields import EMBEDDINGS, ask_host
from gpupool.engines.saas_generation import usage_of
from gpupool.engines.saas_host import Host
from gpupool.errors import HostError
from gpupool.outgoing import Outgoing
from gpupool.tasks import unless_gone

if TYPE_CHECKING:
    from gpupool.exchange import Message, Receive, Send

log = logging.getLogger(__name__)

Json = dict[str, Any]


class SaasOpenAI:
    """Stands behind the gate, which has checked the body and answers the errors that are raised
    here. `name` is what answers call the model, `name_there` what its host does."""

    def __init__(
        self,
        host: Host,
        args: SaasArgs,
        name: str,
        name_there: str,
        note_progress: Callable[[], None],
    ) -> None:
        self._host = host
        self._args = args
        self._name = name
        self._name_there = name_there
        self._note_progress = note_progress

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request; a client that leaves ends it, and the connection to the host."""
        await receive()  # The body, which has been parsed.
        path, body = scope["path"], scope["state"]["body"]
        asked = ask_host(path, body, self._args, self._name_there)
        out = Outgoing(send, render_strictly)
        answer = self._stream if asked.get("stream") else self._whole
        name = body.get("model") or self._name
        await unless_gone(answer(path, asked, name, out), receive)

    async def _whole(self, path: str, asked: Json, name: str, out: Outgoing) -> None:
        reply = await self._host.ask(path, asked)
        self._note_progress()
        content = reply.content
        items = content.get("data" if path == EMBEDDINGS else "choices")
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise _garbled("it has no list of results")
        for index, item in enumerate(items):
            item.setdefault("index", index)
        content["usage"] = usage_of(content)
        out.headers = dict(reply.headers)
        await out.whole(content | {"model": name})

    async def _stream(self, path: str, asked: Json, name: str, out: Outgoing) -> None:
        async with self._host.stream(path, asked) as stream, aclosing(stream.events) as events:
            out.headers = dict(stream.headers)
            async for event in events:
                self._note_progress()
                if event.get("usage") is not None:
                    event["usage"] = usage_of(event)
                await out.event(event | {"model": name})
        await out.done()


def render_strictly(content: Any) -> bytes:
    """As JSON has it: hosts that are written in Python may answer NaN, which no client can read."""
    try:
        return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise _garbled("it has a number that JSON has not, or no end of brackets") from None


def _garbled(why: str) -> HostError:
    log.error("the host's answer is none: %s", why)
    return HostError("the host of this model gave no answer; try again", code="host_failed")
