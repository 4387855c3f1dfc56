"""An event loop on a thread of its own, and the requests that run on it (worker process)."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, TypeVar

from gpupool.engines.base import Failed, Finished, Scored
from gpupool.engines.outlet import Outlet
from gpupool.engines.spawned import Spawned
from gpupool.errors import Cancelled, EngineDead, EngineError, RequestError
from gpupool.tasks import cancel_once, end_other_tasks

log = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, Finished | Scored]]

CLOSE_TIMEOUT_S = 2.0


class RequestLoop:
    """Runs until `end`, which ends all requests with a reason, and `close`. Any thread.

    `on_busy` is called on the loop when a request begins while none is running.
    """

    def __init__(self, on_busy: Callable[[], None], name: str) -> None:
        self.has_ended = threading.Event()
        self._on_busy = on_busy
        self._end_reason: str | None = None
        self._tasks: dict[str, asyncio.Task[Finished | Scored]] = {}
        self._spawned = Spawned()
        # Whoever schedules something on the loop holds it, so that nothing comes after the end.
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def end_reason(self) -> str | None:
        """Why there are no more requests, or None."""
        return self._end_reason

    @property
    def num_running(self) -> int:
        """Requests that have begun and not ended."""
        return len(self._tasks)

    def start(self) -> None:
        """Start the thread; EngineDead if `end` came first."""
        with self._lock:
            self.check()
            self._loop = asyncio.new_event_loop()
            self._thread.start()

    def _run(self) -> None:
        assert self._loop is not None
        self._loop.run_forever()

    def check(self) -> None:
        """EngineDead once it has ended."""
        if self._end_reason is not None:
            raise EngineDead(self._end_reason)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run something on the loop and wait for it; EngineDead if the end comes first."""
        try:
            with self._lock:
                self.check()
                assert self._loop is not None
                future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except EngineDead:
            coroutine.close()
            raise
        try:
            return future.result()
        except CancelledError:
            raise EngineDead(str(self._end_reason)) from None

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin something that the end cancels; EngineDead if there is no loop any more."""
        with self._lock:
            if self._end_reason is None and self._loop is not None:
                return asyncio.run_coroutine_threadsafe(self._spawned.track(coroutine), self._loop)
        coroutine.close()
        raise EngineDead(self._end_reason or "the engine is not loaded")

    def submit(self, outlet: Outlet, work: Work) -> None:
        """Begin a request and return at once."""
        with self._lock:
            reason = self._end_reason
            if reason is None:
                assert self._loop is not None
                self._loop.call_soon_threadsafe(self._begin, outlet, work)
        if reason is not None:
            outlet.end(Failed(EngineDead(reason)))

    def _begin(self, outlet: Outlet, work: Work) -> None:
        assert self._loop is not None
        if not self._tasks:
            self._on_busy()
        task = self._loop.create_task(work())
        self._tasks[outlet.request_id] = task
        task.add_done_callback(lambda done: self._finish(outlet, done))

    def _finish(self, outlet: Outlet, task: asyncio.Task[Finished | Scored]) -> None:
        self._tasks.pop(outlet.request_id, None)
        if task.cancelled():
            reason = self._end_reason
            outlet.end(Failed(EngineDead(reason) if reason else Cancelled("cancelled")))
            return
        error = task.exception()
        if error is None:
            outlet.end(task.result())
        elif isinstance(error, RequestError):
            outlet.end(Failed(error))
        else:
            log.error("unexpected error in a request", exc_info=error)
            outlet.end(Failed(EngineError("the engine failed; the server's log has the details")))

    def cancel(self, request_id: str) -> None:
        """Stop one request; unknown ones are ignored."""
        with self._lock:
            if self._end_reason is None and self._loop is not None:
                self._loop.call_soon_threadsafe(self._cancel_one, request_id)

    def _cancel_one(self, request_id: str) -> None:
        task = self._tasks.get(request_id)
        if task is not None:
            task.cancel()

    def end(self, reason: str) -> None:
        """End all requests, these and later ones; the first reason counts."""
        with self._lock:
            if self._end_reason is None:
                self._end_reason = reason
                self.has_ended.set()
                if self._loop is not None:
                    self._loop.call_soon_threadsafe(self._cancel_all)

    def _cancel_all(self) -> None:
        for task in self._tasks.values():
            cancel_once(task)
        self._spawned.end()

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """After `end`: run what is left to do on the loop and stop its thread; idempotent."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is None:
            return
        closing = asyncio.run_coroutine_threadsafe(self._close(last), loop)
        with suppress(TimeoutError):
            closing.result(CLOSE_TIMEOUT_S)
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join(CLOSE_TIMEOUT_S)
        if not self._thread.is_alive():
            loop.close()

    async def _close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        # Not only the requests: `run` has callers that wait, too.
        await end_other_tasks()
        await asyncio.sleep(0)  # The requests' callbacks run.
        await last()
