"""The coordinator of a batch, with the test in place of its siblings."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

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


def test_when_the_sibling_with_the_copy_dies_the_next_lane_gets_one(
    scoreboard: Scoreboard, mailboxes: Mailboxes
) -> None:
    ours, clients = socket.socketpair()
    call = Call(None, lambda: Message("fanout", 0, {}, b"POST", [clients.fileno()]))
    fanout = Fanout(Replica(never), 0, scoreboard, mailboxes, 60.0)
    jobs = [Job("generate", [1], SamplingParams())] * 100
    coordinator = Coordinator(fanout, jobs, call, RequestClock(scoreboard.totals[0], 0.0))

    def lane_of(index: int) -> list[int]:
        """The descriptors that came: the lane, and the client's connection with a copy."""
        message = wait_until(lambda: mailboxes.receive(index), 5, f"a lane to row {index}")
        return list(message.fds)

    with ours, clients, ThreadPoolExecutor(1) as threads:
        answer = threads.submit(coordinator.run)
        try:
            first, second = lane_of(1), lane_of(2)
            assert (len(first), len(second)) == (2, 1)
            scoreboard[1].pid += 1
            close_all(first)
            again = lane_of(1)
            close_all([*second, *again])
        finally:
            call.hang_up()
        with pytest.raises(Cancelled):
            answer.result()
    assert len(again) == 2
