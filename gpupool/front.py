"""The OpenAI API of one replica: an application, and the event loop it runs on (worker process).

An engine with an API of its own has an event loop too; for any other one is made here.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from gpupool.api.openai.checks import Able
from gpupool.api.openai.gate import Gate
from gpupool.api.openai.inner import Behind, run_part
from gpupool.batch import Answered, OpenAIJob
from gpupool.call import answering
from gpupool.connection import Connection
from gpupool.engines.base import Engine, Failed, SpeaksOpenAI
from gpupool.errors import Cancelled, EngineDead
from gpupool.exchange import Exchange
from gpupool.fanout import Fanout
from gpupool.keys import KeyRing
from gpupool.settings import Settings
from gpupool.totals import Totals


class Front:
    """Made when the engine is loaded. Any thread."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        keys: KeyRing,
        totals: Totals,
        fanout: Fanout | None,
    ) -> None:
        assert isinstance(engine, SpeaksOpenAI)
        speaks = engine.openai()
        self._spawn = engine.spawn
        able = Able(
            features=engine.capabilities,
            fields=speaks.fields,
            model=engine.model,
            model_names=settings.served_model_name or (settings.model_name,),
            media_by_url=speaks.media_by_url,
        )
        self.able = able
        self._behind = Behind(lambda path, body: speaks.app, able, engine.is_lost)
        self.gate = Gate(
            self._behind,
            keys,
            totals,
            fanout,
            max_body_bytes=settings.max_body_bytes,
            cors_origins=settings.cors_origin,
        )

    def answer(
        self, cfg: Any, conn: Connection, access_log: Callable[..., None], *, close_after: bool
    ) -> Future[bool]:
        """Answer the connection's request; whether it may be kept. EngineDead at once if the
        engine is dead."""
        exchange = Exchange(cfg, conn, close_after=close_after)

        async def work() -> bool:
            with answering(conn.call):
                return await exchange.run(self.gate, access_log)

        return self._spawn(work())

    def ask(
        self, job: OpenAIJob, on_over: Callable[[Answered | Failed], None]
    ) -> Future[Answered | Failed]:
        """Answer a part of a request that a coordinator split; `on_over` is called once, also
        when the future is cancelled. EngineDead at once if the engine is dead."""
        asked = self._spawn(run_part(self._behind, job))
        asked.add_done_callback(lambda done: on_over(self._outcome(done)))
        return asked

    def _outcome(self, done: Future[Answered | Failed]) -> Answered | Failed:
        if not done.cancelled():
            return done.result()
        if self._behind.is_dead():
            return Failed(EngineDead("the engine died while it ran this request"))
        return Failed(Cancelled("nobody waits for it any more"))


class LoopThread:
    """An event loop on a thread of its own."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name=name, daemon=True).start()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run something on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)
