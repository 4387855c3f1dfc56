"""Requests on the loop: each ends exactly once, whatever ends it; no engine."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future

import pytest

from gpupool.engines.base import Event, Failed, Scored
from gpupool.engines.outlet import Outlet
from gpupool.engines.request_loop import RequestLoop, Work
from gpupool.errors import BadRequest, Cancelled, EngineDead, EngineError


class Requests:
    """A running loop, what its requests answered, and how often it was told of a beginning."""

    def __init__(self) -> None:
        self.num_begun = 0
        self.loop = RequestLoop(self._count, "requests")
        self.loop.start()
        self.answers: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def _count(self) -> None:
        self.num_begun += 1

    def submit(self, work: Work, name: str = "a") -> None:
        self.loop.submit(Outlet(name, self.answers.put), work)

    def next(self) -> Event:
        return self.answers.get(timeout=10)

    def next_error(self) -> Exception:
        event = self.next()
        assert isinstance(event, Failed), event
        return event.error

    def close(self) -> None:
        self.loop.end("closed")
        self.loop.close(nothing)


@pytest.fixture
def requests() -> Iterator[Requests]:
    running = Requests()
    try:
        yield running
    finally:
        running.close()


async def nothing() -> None:
    pass


async def succeed() -> Scored:
    return Scored((1.0,))


async def wait_for_ever() -> Scored:
    await asyncio.Event().wait()
    return Scored(())


def test_result_is_the_answer(requests: Requests) -> None:
    requests.submit(succeed)
    assert requests.next() == Scored((1.0,))


def test_refusal_is_the_answer(requests: Requests) -> None:
    async def refuse() -> Scored:
        raise BadRequest("no")

    requests.submit(refuse)
    assert isinstance(requests.next_error(), BadRequest)


def test_unexpected_error_is_not_shown(requests: Requests) -> None:
    async def fail() -> Scored:
        raise KeyError("a secret")

    requests.submit(fail)
    error = requests.next_error()
    assert isinstance(error, EngineError)
    assert "secret" not in str(error)


def test_cancelled_before_it_ran_still_ends(requests: Requests) -> None:
    requests.submit(wait_for_ever)
    requests.loop.cancel("a")
    assert isinstance(requests.next_error(), Cancelled)


def test_end_ends_running_and_later_requests(requests: Requests) -> None:
    requests.submit(wait_for_ever)
    requests.loop.end("killed")
    requests.submit(succeed, "late")
    errors = [requests.next_error(), requests.next_error()]
    assert all(isinstance(error, EngineDead) for error in errors)
    assert {str(error) for error in errors} == {"killed"}


def test_end_cancels_what_was_spawned_and_what_comes_later_is_refused(
    requests: Requests,
) -> None:
    has_begun = threading.Event()

    async def begin() -> None:
        has_begun.set()
        await wait_for_ever()

    spawned = requests.loop.spawn(begin())
    assert has_begun.wait(10)
    requests.loop.end("gone")
    with pytest.raises(CancelledError):
        spawned.result(10)
    with pytest.raises(EngineDead, match="gone"):
        requests.loop.spawn(wait_for_ever())


def test_what_was_spawned_just_before_the_end_is_cancelled_after_its_first_step(
    requests: Requests,
) -> None:
    """It is not among what runs when the end looks for that."""
    has_begun = threading.Event()

    async def begin() -> None:
        has_begun.set()
        await wait_for_ever()

    async def spawn_and_end() -> Future[None]:
        spawned = requests.loop.spawn(begin())
        requests.loop.end("gone")
        return spawned

    spawned = requests.loop.run(spawn_and_end())
    with pytest.raises(CancelledError):
        spawned.result(10)
    assert has_begun.is_set()


def test_close_leaves_time_for_last_words_of_what_was_spawned() -> None:
    """It was cancelled when the end came, and is about to tell its client."""
    requests = Requests()
    has_begun, words = threading.Event(), []

    async def work() -> None:
        try:
            has_begun.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)
            words.append("sorry")
            raise

    requests.loop.spawn(work())
    assert has_begun.wait(10)
    requests.close()
    assert words == ["sorry"]


def test_first_reason_counts(requests: Requests) -> None:
    requests.loop.end("first")
    requests.loop.end("second")
    assert requests.loop.end_reason == "first"


def test_close_frees_who_waits_on_the_loop() -> None:
    requests = Requests()

    async def end_while_waiting() -> Scored:
        asyncio.get_running_loop().run_in_executor(None, requests.close)
        return await wait_for_ever()

    with pytest.raises(EngineDead, match="closed"):
        requests.loop.run(end_while_waiting())


def test_begin_after_a_pause_is_told(requests: Requests) -> None:
    for _ in range(2):
        requests.submit(succeed)
        requests.next()
    assert requests.num_begun == 2


def test_begin_among_others_is_not_told(requests: Requests) -> None:
    requests.submit(wait_for_ever, "first")
    requests.submit(succeed, "second")
    requests.next()
    assert requests.num_begun == 1
