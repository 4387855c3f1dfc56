"""An engine's first requests, run by whoever loads it (worker process, the loading thread)."""

from __future__ import annotations

import queue
from collections.abc import Callable

from gpupool.engines.base import Chunk, Event, Failed, Sink
from gpupool.errors import EngineDead

TIMEOUT_S = 600.0


def run_once(start: Callable[[Sink], None]) -> None:
    """Run one request to its end; raises what it failed with."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    start(events.put)
    while True:
        try:
            event = events.get(timeout=TIMEOUT_S)
        except queue.Empty:
            raise EngineDead(f"no answer within {TIMEOUT_S:.0f} s of warming up") from None
        if isinstance(event, Failed):
            raise event.error
        if not isinstance(event, Chunk):
            return
