"""One request has one end."""

from __future__ import annotations

import threading

from gpupool.engines.base import Chunk, Event, Failed
from gpupool.engines.vllm_request import Request
from gpupool.errors import Cancelled


def test_nothing_follows_the_end() -> None:
    events: list[Event] = []
    request = Request("a", events.append)
    first = Failed(Cancelled("cancelled"))
    request.end(first)
    request.emit(Chunk("late"))
    request.end(Failed(Cancelled("again")))
    assert events == [first]


def test_of_many_ends_at_once_one_is_told() -> None:
    events: list[Event] = []
    request = Request("a", events.append)
    start = threading.Barrier(16)

    def end() -> None:
        start.wait()
        request.end(Failed(Cancelled("cancelled")))

    threads = [threading.Thread(target=end) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(events) == 1
