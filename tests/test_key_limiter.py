"""Several workers hold one key to its limits together."""

from __future__ import annotations

import mmap

import pytest

from gpupool.call import Call, History
from gpupool.errors import KeyLimited
from gpupool.key_limiter import KeyLimiter
from gpupool.key_use import Sent
from gpupool.keys import KeyRing
from gpupool.scoreboard import Scoreboard
from gpupool.settings import Settings
from tests.forked import Forked, Say
from tests.pool import wait_until

KEYS = KeyRing(("one", "another"))


class Workers:
    """Their limiters, in one process, and what they have in flight."""

    def __init__(self, count: int, **limits: int) -> None:
        self.scoreboard = Scoreboard(count)
        settings = Settings(api_key=("one", "another"), **limits)
        self.limiters = [
            KeyLimiter(settings, KEYS, self.scoreboard, index) for index in range(count)
        ]
        for index in range(count):
            self.scoreboard[index].pid = 1

    def begin(
        self, index: int, key: str = "one", history: History | None = None
    ) -> History | KeyLimited:
        """The request that was let in, or the refusal."""
        history = history or History()
        refused = self.limiters[index].begin(history, [("AUTHORIZATION", f"Bearer {key}")])
        return history if refused is None else refused

    def let_in(self, index: int, key: str = "one") -> History:
        history = self.begin(index, key)
        assert isinstance(history, History)
        return history

    def is_refused(self, index: int, key: str = "one") -> bool:
        return isinstance(self.begin(index, key), KeyLimited)

    def send(self, history: History, sender: int, to: int) -> tuple[History, Sent]:
        """What arrives later."""
        sent = self.limiters[sender].send(history, to)
        copy = History.of_fields(history.as_fields())
        self.limiters[sender].note_sent(history)
        self.limiters[sender].let_go(history)  # as the connection is closed at this end
        return copy, sent

    def arrive(self, arrived: tuple[History, Sent]) -> History:
        history, sent = arrived
        self.limiters[sent.to].take_over(history, sent)
        return history


def call_of(history: History, num_tokens: int) -> Call:
    call = Call(history=history)
    call.num_tokens = num_tokens
    return call


def test_each_worker_sees_what_the_others_have() -> None:
    workers = Workers(3, key_concurrency=2)
    workers.let_in(0)
    workers.let_in(1)
    assert workers.is_refused(2)
    assert not workers.is_refused(2, "another")


def test_a_refusal_takes_no_place() -> None:
    workers = Workers(2, key_concurrency=1)
    history = workers.let_in(0)
    for _ in range(3):
        assert workers.is_refused(1)
    workers.limiters[0].let_go(history)
    assert not workers.is_refused(1)


def test_what_has_ended_is_not_ended_again() -> None:
    workers = Workers(1, key_concurrency=1)
    history = workers.let_in(0)
    workers.limiters[0].let_go(history)
    workers.limiters[0].let_go(history)
    workers.let_in(0)
    assert workers.is_refused(0)


def test_a_worker_without_a_process_does_not_count() -> None:
    """Its next one may be minutes away."""
    workers = Workers(2, key_concurrency=1)
    workers.let_in(0)
    workers.scoreboard[0].pid = 0
    workers.let_in(1)


def test_nobody_slips_in_while_a_request_is_on_its_way() -> None:
    workers = Workers(3, key_concurrency=1)
    sent = workers.send(workers.let_in(0), 0, 1)
    assert workers.is_refused(0)
    assert workers.is_refused(2)
    workers.arrive(sent)
    assert workers.is_refused(0)


def test_a_request_that_arrives_is_let_in_though_the_limit_is_reached() -> None:
    workers = Workers(2, key_concurrency=1)
    history = workers.arrive(workers.send(workers.let_in(0), 0, 1))
    assert workers.begin(1, history=history) is history


def test_a_request_that_went_from_worker_to_worker_leaves_nothing_behind() -> None:
    workers = Workers(3, key_concurrency=1)
    history = workers.let_in(0)
    for sender, to in ((0, 1), (1, 2), (2, 0)):
        history = workers.arrive(workers.send(history, sender, to))
    workers.limiters[0].let_go(history)
    for index in range(3):
        history = workers.let_in(index)
        assert workers.is_refused(index)
        workers.limiters[index].let_go(history)


def test_a_request_that_could_not_be_sent_still_counts_once() -> None:
    workers = Workers(2, key_concurrency=1)
    history = workers.let_in(0)
    workers.limiters[0].send(history, 1)
    workers.limiters[0].take_back(history)
    assert workers.is_refused(1)
    workers.limiters[0].let_go(history)
    assert not workers.is_refused(1)


def test_a_request_whose_worker_was_killed_counts_at_the_one_that_has_a_copy() -> None:
    workers = Workers(2, key_concurrency=1)
    copy = History.of_fields(workers.let_in(0).as_fields())
    workers.scoreboard[0].pid = 0
    workers.limiters[1].take_over(copy, None)
    assert workers.is_refused(1)
    workers.limiters[1].let_go(copy)
    assert not workers.is_refused(1)


def test_tokens_count_where_the_request_ended() -> None:
    workers = Workers(3, key_tokens_per_minute=10)
    history = workers.arrive(workers.send(workers.let_in(0), 0, 1))
    workers.limiters[1].end(call_of(history, 10))
    assert workers.is_refused(2)
    assert not workers.is_refused(2, "another")


def test_an_answer_counts_its_tokens_once() -> None:
    """Before its last bytes are sent, and after."""
    workers = Workers(1, key_tokens_per_minute=15)
    call = call_of(workers.let_in(0), 10)
    workers.limiters[0].end(call)
    workers.limiters[0].end(call)
    assert not workers.is_refused(0)


def test_a_pool_without_limits_counts_nothing() -> None:
    workers = Workers(1)
    assert workers.let_in(0).key == 0


@pytest.mark.parametrize("limit", [1, 2])
def test_workers_that_look_at_the_same_moment_never_let_in_one_too_many(limit: int) -> None:
    workers = Workers(limit + 1, key_concurrency=limit)
    inside = memoryview(mmap.mmap(-1, 8 * (limit + 1))).cast("Q")
    counts = memoryview(mmap.mmap(-1, 16)).cast("Q")  # let in, seen too many

    def work(index: int, say: Say) -> None:
        while True:
            history = workers.begin(index)
            if isinstance(history, History):
                inside[index] = 1
                most = max(sum(inside) for _ in range(50))  # for as long as others take to begin
                inside[index] = 0
                if not index:
                    counts[0] += 1
                    counts[1] += most > limit
                workers.limiters[index].let_go(history)

    forked = [Forked(lambda say, index=index: work(index, say)) for index in range(limit + 1)]
    try:
        wait_until(lambda: counts[0] >= 5000, 30, "5000 requests let in")
    finally:
        for process in forked:
            process.kill()
    assert counts[1] == 0
