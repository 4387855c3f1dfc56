"""A worker's end of a lane, with the test in place of the coordinator."""

from __future__ import annotations

import socket
from multiprocessing.connection import Connection

from gpupool.batch import Job
from gpupool.engines.base import SamplingParams
from gpupool.lane import Jobs, Lane
from gpupool.replica import Replica
from gpupool.scoreboard import Scoreboard
from gpupool.slots import Slots


def never(*_: object) -> None:
    raise AssertionError("no engine is loaded here")


def test_a_coordinator_that_leaves_right_after_it_sent_jobs_takes_no_slots_along() -> None:
    """As when its client hangs up, or it is killed, in that moment."""
    scoreboard = Scoreboard(1)
    ours, theirs = socket.socketpair()
    lane = Lane(theirs, Replica(never), Slots(scoreboard[0]), scoreboard.totals[0])
    job = Job("generate", [1], SamplingParams())
    with Connection(ours.detach()) as coordinator:
        coordinator.send(Jobs([(0, job), (1, job)], 0.0, True))
    lane.serve()
    assert scoreboard[0].running == 0
