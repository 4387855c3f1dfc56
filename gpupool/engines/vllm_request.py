"""One request on its way through vLLM: its sink, its task, its one end (worker process).

Imports nothing of vLLM.
"""

from __future__ import annotations

import asyncio
import threading

from gpupool.engines.base import Chunk, Event, Sink


class Request:
    """Lets exactly one last event through, whoever is first: the task, a death or a cancel."""

    def __init__(self, request_id: str, sink: Sink) -> None:
        self.id = request_id
        self.task: asyncio.Task[Event] | None = None
        self._sink = sink
        self._ended = False
        self._lock = threading.Lock()

    def emit(self, chunk: Chunk) -> None:
        """Pass on a piece, unless the end has been told."""
        with self._lock:
            if not self._ended:
                self._sink(chunk)

    def end(self, event: Event) -> None:
        """Tell the end, once."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._sink(event)

    def cancel(self) -> None:
        """Stop the task; on its loop."""
        if self.task is not None:
            self.task.cancel()
