"""The events of one request on their way to its sink: in order, exactly one last (any thread)."""

from __future__ import annotations

import threading

from gpupool.engines.base import Chunk, LastEvent, Sink


class Outlet:
    """Wraps a sink, so that whoever ends the request first has ended it."""

    def __init__(self, request_id: str, sink: Sink) -> None:
        self.request_id = request_id
        self._sink = sink
        self._lock = threading.Lock()
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """Whether the last event is out."""
        return self._is_over

    def send(self, chunk: Chunk) -> None:
        """Pass a piece on; nothing after the end."""
        with self._lock:
            if not self._is_over:
                self._sink(chunk)

    def end(self, event: LastEvent) -> bool:
        """Pass the last event on; False if the request was over already."""
        with self._lock:
            if self._is_over:
                return False
            self._is_over = True
            self._sink(event)
            return True
