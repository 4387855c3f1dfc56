from __future__ import annotations

import threading

from gpupool.engines.base import Chunk, Completion, Event, Failed, Finished
from gpupool.engines.outlet import Outlet
from gpupool.errors import Cancelled

DONE = Finished((Completion("", (), "stop"),))


def test_first_end_is_the_only_one() -> None:
    events: list[Event] = []
    outlet = Outlet("a", events.append)
    assert outlet.end(DONE)
    assert not outlet.end(Failed(Cancelled("too late")))
    assert events == [DONE]


def test_nothing_follows_the_end() -> None:
    events: list[Event] = []
    outlet = Outlet("a", events.append)
    outlet.end(DONE)
    outlet.send(Chunk("late"))
    assert events == [DONE]


def test_threads_that_end_together_give_one_end() -> None:
    for _ in range(50):
        events: list[Event] = []
        outlet = Outlet("a", events.append)
        barrier = threading.Barrier(4)

        def race(outlet: Outlet = outlet, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(timeout=10)
            outlet.end(DONE)

        threads = [threading.Thread(target=race) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert events == [DONE]
