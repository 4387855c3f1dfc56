"""The ASGI application of a replica: the OpenAI API by its gate, everything else by Flask (replica
process, Serve's event loop)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from gpupool.api.openai.routes import is_ours
from gpupool.call import Call, Counter, History
from gpupool.errors import Moved, RequestError, Unavailable, render_error
from gpupool.exchange import Message, Receive, Send
from gpupool.mailbox import Message as Copy
from gpupool.outgoing import render_json
from gpupool.ray_pool.flask_call import Reply, call_flask
from gpupool.ray_pool.host import ReplicaHost
from gpupool.ray_pool.names import MOVED_HEADER
from gpupool.ray_pool.relay import Relay


class Answerer:
    """Any number of requests at a time."""

    def __init__(self, host: ReplicaHost) -> None:
        self._host = host

    async def __call__(
        self, scope: Message, receive: Receive, send: Send, slot: Counter | None = None
    ) -> None:
        """Answers one request, whose body the door has read and measured."""
        if scope["type"] != "http":
            return
        body = await _read(receive)
        if body is None:
            return
        call = Call(slot, _no_copy, History(since=time.monotonic()))
        self._host.spread.loop = asyncio.get_running_loop()
        async with _heard(receive, call):
            try:
                if is_ours(scope["raw_path"].decode("latin-1")):
                    await self._by_gate(scope, body, send, call)
                else:
                    reply = await self._by_flask(scope, body, call)
                    await _give(reply, send)
            except Moved as moved:
                await _give(_moved(moved), send)
            except Unavailable as error:
                await _give(_refusal(error), send)

    async def control(self, scope: Message) -> Reply:
        """Answers a control route, past those who wait for a slot or a handler thread."""
        loop, host = asyncio.get_running_loop(), self._host
        return await loop.run_in_executor(
            host.control_threads, call_flask, host.app, scope, b"", Call()
        )

    async def _by_flask(self, scope: Message, body: bytes, call: Call) -> Reply:
        loop, host = asyncio.get_running_loop(), self._host
        return await loop.run_in_executor(host.threads, call_flask, host.app, scope, body, call)

    async def _by_gate(self, scope: Message, body: bytes, send: Send, call: Call) -> None:
        try:
            self._host.replica.ready_engine()
            front = self._host.replica.front
            assert front is not None
            relay = Relay(scope, body, send, call)
            done = front.run(relay.work(front.gate))
        except Unavailable:  # just now: it was sent here as to a ready one
            call.move()
        else:
            # The work ends itself when it hears that the client is gone; cancelled from here, it
            # would look like an engine's end.
            await asyncio.shield(asyncio.wrap_future(done))


@contextlib.asynccontextmanager
async def _heard(receive: Receive, call: Call) -> AsyncIterator[None]:
    """Within it the call is told when its client hangs up: Serve cancels the task then, other
    servers send a message."""

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        call.hang_up()

    listening = asyncio.create_task(listen())
    try:
        yield
    except asyncio.CancelledError:
        call.hang_up()
        raise
    finally:
        listening.cancel()


async def _read(receive: Receive) -> bytes | None:
    """The whole body; None if the client has left."""
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def _give(reply: Reply, send: Send) -> None:
    start: dict[str, Any] = {"type": "http.response.start", "status": reply.status}
    await send(start | {"headers": reply.headers})
    await send({"type": "http.response.body", "body": reply.body, "more_body": False})


def _refusal(error: RequestError) -> Reply:
    status, headers, content = render_error(error)
    given = [(b"content-type", b"application/json")]
    given += [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Reply(status, given, render_json(content))


def _moved(error: Moved) -> Reply:
    """For the door, which asks another replica."""
    reply = _refusal(error)
    reply.headers.append((MOVED_HEADER, b"1"))
    return reply


def _no_copy() -> Copy:
    raise AssertionError("the door has the request, and asks again itself")
