"""The OpenAI API of one replica: an application, and the event loop it runs on (worker process).

An engine with an API of its own has an event loop too; for any other one is made here.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

from gpupool.access import AccessLog
from gpupool.api.openai.checks import Able
from gpupool.api.openai.gate import Gate
from gpupool.api.openai.inner import Behind, run_part
from gpupool.api.openai.own.app import OwnApp
from gpupool.batch import Answered, OpenAIJob
from gpupool.call import answering
from gpupool.connection import Connection
from gpupool.engines.base import Engine, Failed, SpeaksOpenAI
from gpupool.errors import Cancelled, EngineDead
from gpupool.exchange import Exchange
from gpupool.fanout import Fanout
from gpupool.keys import KeyRing
from gpupool.settings import Settings
from gpupool.tasks import end_other_tasks
from gpupool.totals import Totals

T = TypeVar("T")

CLOSE_TIMEOUT_S = 2.0


class Front:
    """From the engine's load to its end. Any thread."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        keys: KeyRing,
        totals: Totals,
        fanout: Fanout | None = None,
        access: AccessLog | None = None,
    ) -> None:
        self._engine = engine
        self._names = settings.served_model_name or (settings.model_name,)
        self._thread: LoopThread | None = None
        self._own: OwnApp | None = None
        if isinstance(engine, SpeaksOpenAI):
            self._behind = self._behind_engine(engine)
        else:
            self._behind = self._behind_own()
        self.gate = Gate(
            self._behind,
            keys,
            totals,
            fanout,
            max_body_bytes=settings.max_body_bytes,
            cors_origins=settings.cors_origin,
            access=access,
        )

    @property
    def able(self) -> Able:
        """What can be asked for."""
        return self._behind.able

    def _behind_own(self) -> Behind:
        """The pool's own application alone."""
        own = self._make_own()
        self._thread = LoopThread("openai")
        self._spawn = self._thread.spawn
        return Behind(lambda path, body: own, self._able(own.fields), own.is_lost)

    def _behind_engine(self, engine: SpeaksOpenAI) -> Behind:
        """The engine's, and the pool's own for what it leaves."""
        speaks = engine.openai()
        self._spawn = engine.spawn
        able = replace(
            self._able(speaks.fields),
            media_by_url=speaks.media_by_url,
            absent=speaks.absent,
            whole=speaks.whole,
        )
        if speaks.leaves is None:
            return Behind(lambda path, body: speaks.app, able, engine.is_lost)
        own, leaves = self._make_own(), speaks.leaves
        return Behind(
            lambda path, body: own if leaves(path, body) else speaks.app,
            able,
            lambda: engine.is_lost() or own.is_lost(),
        )

    def _make_own(self) -> OwnApp:
        self._own = OwnApp(self._engine, self._names)
        return self._own

    def _able(self, fields: Mapping[str, frozenset[str]]) -> Able:
        return Able(
            features=self._engine.capabilities,
            fields=fields,
            model=self._engine.model,
            model_names=self._names,
        )

    def close(self) -> None:
        """Answer nothing any more; idempotent."""
        if self._thread is not None:
            self._thread.close()
        if self._own is not None:
            self._own.close()

    def answer(
        self,
        cfg: Any,
        conn: Connection,
        access_log: Callable[..., None],
        *,
        close_after: bool,
        on_answered: Callable[[], None],
    ) -> Future[bool]:
        """Answer the connection's request; whether it may be kept. EngineDead at once if the
        engine is dead. See Exchange for the rest."""
        exchange = Exchange(cfg, conn, close_after=close_after, on_answered=on_answered)

        async def work() -> bool:
            with answering(conn.call):
                return await exchange.run(self.gate, access_log)

        return self._spawn(work())

    def run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run something on the event loop that the gate runs on; EngineDead at once if the engine
        is dead."""
        return self._spawn(work)

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
    """An event loop on a thread of its own, from construction to `close`."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def spawn(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run something on the loop; EngineDead once it is closed. Thread-safe."""
        with self._lock:
            if not self._is_closed:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        raise EngineDead("the engine was ended")

    def close(self) -> None:
        """Cancel what runs and end the thread; idempotent."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread is not threading.current_thread():
            self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(end_other_tasks())
        self._loop.close()
