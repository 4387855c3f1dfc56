"""The requests inside one vLLM engine, until it dies (worker process).

Imports nothing of vLLM.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from gpupool.engines import vllm_sampling as sampling
from gpupool.engines.base import Event, Failed
from gpupool.engines.spawned import Spawned
from gpupool.engines.vllm_request import Request
from gpupool.errors import Cancelled, EngineDead

log = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[Request], Coroutine[Any, Any, Event]]


class Ledger:
    """Starts work on vLLM's event loop, any thread, and ends all of it when the engine dies.

    `on_busy` is called when a request begins while there is none; `find_cause` says why vLLM is
    dead. Whoever schedules something on the loop holds the lock, so that nothing comes after the
    end.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(self, on_busy: Callable[[], None], find_cause: Callable[[], str]) -> None:
        self._on_busy = on_busy
        self._find_cause = find_cause
        self._lock = threading.Lock()
        self._requests: dict[str, Request] = {}
        self._spawned = Spawned()
        self.dead_reason: str | None = None

    def __len__(self) -> int:
        return len(self._requests)

    def check(self) -> None:
        """EngineDead once the engine is dead."""
        if self.dead_reason is not None:
            raise EngineDead(self.dead_reason)

    def begin(self, request: Request, work: Work) -> None:
        """Start a request, or end it at once if the engine is dead."""
        with self._lock:
            reason = self.dead_reason
            if reason is None:
                if not self._requests:
                    # An engine that was idle is not a hung one.
                    self._on_busy()
                self._requests[request.id] = request
                self.loop.call_soon_threadsafe(self._spawn, request, work)
        if reason is not None:
            request.end(Failed(EngineDead(reason)))

    def _spawn(self, request: Request, work: Work) -> None:
        request.task = self.loop.create_task(work(request))
        request.task.add_done_callback(partial(self._finish, request))

    def _finish(self, request: Request, task: asyncio.Task[Event]) -> None:
        with self._lock:
            self._requests.pop(request.id, None)
        request.end(self._outcome(task))

    def _outcome(self, task: asyncio.Task[Event]) -> Event:
        error = Cancelled("cancelled") if task.cancelled() else task.exception()
        if error is None:
            return task.result()
        known = sampling.to_request_error(error)
        if isinstance(known, EngineDead):
            self.perish(self._find_cause())
        if self.dead_reason is not None:
            return Failed(EngineDead(self.dead_reason))
        if known is None:
            log.error("a request failed inside vLLM", exc_info=error)
        return Failed(known or sampling.unforeseen())

    def spawn(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run something on the loop; EngineDead if there is none any more."""
        with self._lock:
            if self.dead_reason is None:
                return asyncio.run_coroutine_threadsafe(self._spawned.track(work), self.loop)
        work.close()
        raise EngineDead(self.dead_reason)

    def cancel(self, request_id: str) -> None:
        """Stop one request; unknown ones are ignored."""
        with self._lock:
            request = self._requests.get(request_id)
            if request is not None and self.dead_reason is None:
                self.loop.call_soon_threadsafe(request.cancel)

    def perish(self, reason: str) -> None:
        """Refuse new requests and end those there are; the first reason stays."""
        with self._lock:
            if self.dead_reason is None:
                self.dead_reason = reason
                if hasattr(self, "loop"):
                    self.loop.call_soon_threadsafe(self._spawned.end)
            requests = list(self._requests.values())
            self._requests.clear()
        for request in requests:
            request.end(Failed(EngineDead(self.dead_reason)))
