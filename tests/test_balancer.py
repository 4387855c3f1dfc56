"""The table of balancer.py, row by row."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from gpupool.balancer import RUN, WAIT, Choice, View, ask_whom, pick

OWN = View(index=0, state="ready", is_ready=True, slots=4)
SIBLING = View(index=1, state="ready", is_ready=True, slots=4)
LOADING = View(index=2, state="loading", is_ready=False, slots=0)
LEAVING = View(index=0, state="draining", is_ready=False, slots=4)
TO_SIBLING = Choice("forward", 1)
FULL = 4

TABLE = {
    "alone, idle": (OWN, [], RUN),
    "as idle as the sibling": (OWN, [SIBLING], RUN),
    "sibling idler": (replace(OWN, running=1), [SIBLING], TO_SIBLING),
    "sibling busier": (replace(OWN, running=1), [replace(SIBLING, running=2)], RUN),
    "sibling not ready": (replace(OWN, running=1), [LOADING], RUN),
    "slightly ahead of many": (
        replace(OWN, slots=99, running=18, mean_run_s=0.1),
        [replace(SIBLING, slots=99, running=17)],
        RUN,
    ),
    "slightly ahead of many that take long": (
        replace(OWN, slots=99, running=18, mean_run_s=5),
        [replace(SIBLING, slots=99, running=17)],
        TO_SIBLING,
    ),
    "clearly ahead of many": (
        replace(OWN, slots=99, running=21, mean_run_s=0.1),
        [replace(SIBLING, slots=99, running=17)],
        TO_SIBLING,
    ),
    "short requests stay": (replace(OWN, running=1, mean_run_s=0.001), [SIBLING], RUN),
    "short requests leave a full worker": (
        replace(OWN, running=FULL, mean_run_s=0.001),
        [SIBLING],
        TO_SIBLING,
    ),
    "full, sibling free": (replace(OWN, running=FULL), [SIBLING], TO_SIBLING),
    "full, sibling full": (replace(OWN, running=FULL), [replace(SIBLING, running=FULL)], WAIT),
    "full, sibling full with what is on its way": (
        replace(OWN, running=FULL),
        [replace(SIBLING, running=2, in_transit=2)],
        WAIT,
    ),
    "behind those who wait": (replace(OWN, running=3, waiting=1), [], WAIT),
    "loading, sibling ready": (replace(LOADING, index=0), [SIBLING], TO_SIBLING),
    "loading, sibling full": (
        replace(LOADING, index=0),
        [replace(SIBLING, running=FULL)],
        TO_SIBLING,
    ),
    "loading, nobody ready": (replace(LOADING, index=0), [LOADING], WAIT),
    "leaving, sibling ready": (LEAVING, [SIBLING, LOADING], TO_SIBLING),
    "leaving, one on its way": (LEAVING, [LOADING], Choice("forward", 2)),
    "leaving, nobody else": (LEAVING, [], RUN),
    "leaving with all others": (LEAVING, [replace(LEAVING, index=1)], RUN),
}


@pytest.mark.parametrize(("own", "siblings", "choice"), TABLE.values(), ids=TABLE.keys())
def test_the_table(own: View, siblings: list[View], choice: Choice) -> None:
    assert pick(own, siblings) == choice


FORWARDED = {
    "stays where it can run": (replace(OWN, running=1), [SIBLING], RUN),
    "waits where it came to": (replace(OWN, running=FULL), [SIBLING], WAIT),
    "goes on from one that leaves": (LEAVING, [SIBLING], TO_SIBLING),
    "ends where all leave": (LEAVING, [LOADING], RUN),
}


@pytest.mark.parametrize(("own", "siblings", "choice"), FORWARDED.values(), ids=FORWARDED.keys())
def test_a_forwarded_request_goes_in_no_circles(
    own: View, siblings: list[View], choice: Choice
) -> None:
    assert pick(own, siblings, was_forwarded=True) == choice


def test_of_equally_idle_siblings_each_worker_chooses_the_next() -> None:
    views = [replace(SIBLING, index=index) for index in range(4)]
    chosen = [
        pick(replace(own, running=2), [view for view in views if view is not own]).to
        for own in views
    ]
    assert chosen == [1, 2, 3, 0]


def test_the_longest_waiting_of_the_pool_is_asked_for() -> None:
    siblings = [
        replace(SIBLING, index=1, running=4, waiting=5, oldest=20.0),
        replace(SIBLING, index=2, running=4, waiting=1, oldest=10.0),
        replace(SIBLING, index=3, running=4, waiting=0, oldest=0.0),
    ]
    assert ask_whom(OWN, siblings) == 2


LONG_AGO = 10.0
WHO_IS_FIRST = {
    "clearly later": (OWN, LONG_AGO + 0.1, 1),
    "hardly later": (OWN, LONG_AGO + 0.04, None),
    "earlier": (OWN, LONG_AGO - 1, None),
    "later, but over in no time": (replace(OWN, mean_run_s=0.001), LONG_AGO + 0.1, None),
    "later, without a slot": (replace(OWN, running=FULL), LONG_AGO + 0.1, None),
}


@pytest.mark.parametrize(("own", "since", "asked"), WHO_IS_FIRST.values(), ids=WHO_IS_FIRST.keys())
def test_one_that_waits_longer_goes_before_ones_own(
    own: View, since: float, asked: int | None
) -> None:
    waiting = replace(SIBLING, running=FULL, waiting=2, oldest=LONG_AGO)
    assert ask_whom(own, [waiting], since) == asked


@pytest.mark.parametrize("own", [replace(OWN, running=FULL), LEAVING], ids=["full", "leaving"])
def test_who_cannot_run_asks_for_nothing(own: View) -> None:
    assert ask_whom(own, [replace(SIBLING, waiting=5)]) is None


def test_nobody_is_left_waiting_beside_a_free_slot() -> None:
    """Whatever the loads: who must wait sees no ready worker with a free slot."""
    random.seed(7)
    for _ in range(2000):
        views = [
            replace(SIBLING, index=index, running=random.randint(0, 5), waiting=0)
            for index in range(random.randint(1, 8))
        ]
        own, siblings = views[0], views[1:]
        if pick(own, siblings) == WAIT:
            assert not any(view.has_free_slot for view in views)
