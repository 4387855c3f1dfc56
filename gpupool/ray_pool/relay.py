"""One request between two event loops: Serve's, which has the client, and the engine's, on which
the OpenAI API runs (replica process)."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

from gpupool.attending import attend, note_end
from gpupool.call import Call, answering
from gpupool.exchange import App, Message, Send


class Relay:
    """`send` is of the event loop that this is made on; `work` runs on another."""

    def __init__(self, scope: Message, body: bytes, send: Send, call: Call) -> None:
        self._scope = scope
        self._body: bytes | None = body
        self._send_there = send
        self._there = asyncio.get_running_loop()
        self._call = call

    async def work(self, app: App) -> None:
        """Let the application answer; over soon after the client is gone. Raises Moved if another
        replica is to answer."""
        self._gone = asyncio.Event()
        with answering(self._call):
            work = asyncio.create_task(app(self._scope, self._receive, self._send))
            await attend(work, self._gone, self._call)
            note_end(work, self._scope["path"])

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        """The wait for it is what holds back an application whose client is slow."""
        if self._gone.is_set():
            return
        sending: Future[Any] = asyncio.run_coroutine_threadsafe(self._deliver(message), self._there)
        try:
            await asyncio.wrap_future(sending)
        except Exception:
            if not self._call.is_gone:
                raise

    async def _deliver(self, message: Message) -> None:
        await self._send_there(message)
