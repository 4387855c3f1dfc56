"""The coordinator of a batch, with the test in place of its siblings."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from gpupool.batch import Job
from gpupool.call import Call
from gpupool.clock import RequestClock
from gpupool.coordinator import Coordinator
from gpupool.engines.base import SamplingParams
from gpupool.errors import Cancelled
from gpupool.fanout import Fanout
from gpupool.mailbox import Mailboxes, Message, close_all
from gpupool.replica import Replica
from gpupool.scoreboard import Scoreboard
from tests.pool import wait_until

NUM_WORKERS = 3


def never(*_: object) -> None:
    raise AssertionError("no engine is loaded here")


@pytest.fixture(name="scoreboard")
def _scoreboard() -> Scoreboard:
    scoreboard = Scoreboard(NUM_WORKERS)
    for index in range(NUM_WORKERS):
        scoreboard.claim(index)
        scoreboard[index].pid = os.getpid()
        scoreboard[index].slots = 4
        scoreboard[index].enter("ready")
    return scoreboard


@pytest.fixture(name="mailboxes")
def _mailboxes(scoreboard: Scoreboard) -> Iterator[Mailboxes]:
    mailboxes = Mailboxes(len(scoreboard))
    yield mailboxes
    for sending, receiving in mailboxes._pairs:
        sending.close()
        receiving.close()


class Siblings:
    """A batch of a hundred jobs, of which the test has the other ends."""

    def __init__(self, scoreboard: Scoreboard, mailboxes: Mailboxes) -> None:
        self._mailboxes = mailboxes
        self._ours, self._client = socket.socketpair()
        copy = Message("fanout", 0, {}, b"POST", [self._client.fileno()])
        self._call = Call(None, lambda: replace(copy, fds=[*copy.fds]))
        fanout = Fanout(Replica(never), 0, scoreboard, mailboxes, 60.0)
        jobs = [Job("generate", [1], SamplingParams())] * 100
        clock = RequestClock(scoreboard.totals[0], 0.0)
        self._coordinator = Coordinator(fanout, jobs, self._call, clock)

    def __enter__(self) -> Siblings:
        self._threads = ThreadPoolExecutor(1)
        self._answer = self._threads.submit(self._coordinator.run)
        return self

    def __exit__(self, *error: object) -> None:
        self._call.hang_up()
        with pytest.raises(Cancelled):
            self._answer.result()
        self._threads.shutdown()
        self._ours.close()
        self._client.close()

    def opened(self, index: int) -> list[int]:
        """The descriptors that came: the lane, and the client's connection with a copy."""
        receive = self._mailboxes.receive
        message = wait_until(lambda: receive(index), 5, f"a lane to row {index}")
        return list(message.fds)


def test_when_the_sibling_with_the_copy_dies_another_gets_one(
    scoreboard: Scoreboard, mailboxes: Mailboxes
) -> None:
    """Also one that had a lane already, and if the dead one does not come back."""
    with Siblings(scoreboard, mailboxes) as siblings:
        heir, first, second = (siblings.opened(index) for index in (1, 1, 2))
        assert [len(heir), len(first), len(second)] == [2, 1, 1]
        scoreboard[1].pid = 0
        close_all([*heir, *first])
        again = siblings.opened(2)
        close_all([*second, *again])
    assert len(again) == 2


def test_a_worker_whose_lane_breaks_gets_no_other(
    scoreboard: Scoreboard, mailboxes: Mailboxes
) -> None:
    """It may lack files or memory: to ask it on and on would keep two workers busy with that."""
    with Siblings(scoreboard, mailboxes) as siblings:
        heir, first = siblings.opened(1), siblings.opened(1)
        close_all(heir)
        second = [siblings.opened(2) for _ in range(2)]
        close_all([*first, *second[0], *second[1]])
    assert sorted(map(len, second)) == [1, 2]
