"""The rolling reload's policy, played through on a pool of plain states."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpupool.roll import Act, Roll, SlotView, Step

NEXT = {"starting": "waiting", "waiting": "loading", "loading": "ready"}


@dataclass
class Slot:
    """One slot of the played pool: its old worker and its successor."""

    index: int
    old: str | None = "ready"
    is_old_told: bool = False
    new: str | None = None
    is_stuck: bool = False

    def view(self) -> SlotView:
        return SlotView(self.index, self.old, self.is_old_told, self.new, False, self.is_stuck)

    def advance(self) -> None:
        """One thing happens here, if anything can."""
        if self.is_old_told and self.old is not None:
            self.old = None if self.old == "draining" else "draining"
        elif self.old in NEXT and not self.is_stuck:
            self.old = NEXT[self.old]
        elif self.new == "starting":
            self.new = "waiting"
        elif self.new in NEXT and self.old is None and not self.is_stuck:
            self.new = NEXT[self.new]


@dataclass
class Pool:
    slots: list[Slot]

    def views(self) -> list[SlotView]:
        return [slot.view() for slot in self.slots]

    def num_serving(self) -> int:
        return sum("ready" in (slot.old, slot.new) for slot in self.slots)

    def do(self, step: Step) -> None:
        slot = self.slots[step.slot]
        if step.act is Act.FORK:
            assert slot.new is None
            slot.new = "starting"
        else:
            assert slot.old is not None
            assert not slot.is_old_told
            slot.is_old_told = True
            slot.old = "draining" if slot.old == "ready" else slot.old


def play(pool: Pool, order: list[int]) -> list[Step]:
    """Roll to the end; `order` says where something happens next, over and over. At no moment
    does more than one of those that served not serve."""
    roll, done = Roll(), []
    least = pool.num_serving() - 1
    for turn in range(3000):
        views = pool.views()
        step = roll.next_step(views)
        if step is not None:
            done.append(step)
            pool.do(step)
        elif roll.is_done(views):
            return done
        assert pool.num_serving() >= least
        pool.slots[order[turn % len(order)] % len(pool.slots)].advance()
        if turn % 7 == 0:
            for slot in pool.slots:
                slot.advance()
    raise AssertionError(f"the roll does not end: {pool}")


@given(
    old=st.lists(st.sampled_from(["ready", "ready", "loading", "starting", None]), min_size=1),
    order=st.lists(st.integers(0, 20), min_size=1),
)
@settings(deadline=None)
def test_every_worker_is_replaced_and_only_one_is_missing(
    old: list[str | None], order: list[int]
) -> None:
    pool = Pool([Slot(i, state, is_stuck=state is None) for i, state in enumerate(old)])
    play(pool, order)
    assert all(slot.old is None for slot in pool.slots)


def test_the_successor_is_forked_before_its_predecessor_is_told_to_end() -> None:
    steps = play(Pool([Slot(0)]), [0])
    assert steps == [Step(Act.FORK, 0), Step(Act.RETIRE, 0)]


def test_nobody_is_told_to_end_before_the_successor_can_take_connections() -> None:
    roll = Roll()
    assert roll.next_step([SlotView(0, old="ready")]) == Step(Act.FORK, 0)
    assert roll.next_step([SlotView(0, old="ready", new="starting")]) is None
    assert roll.next_step([SlotView(0, old="ready", new="waiting")]) == Step(Act.RETIRE, 0)


@pytest.mark.parametrize("state", ["starting", "loading", "silent", "failed"])
def test_workers_that_do_not_serve_are_replaced_first(state: str) -> None:
    steps = play(Pool([Slot(0), Slot(1, state), Slot(2)]), [0, 2])
    assert steps[0] == Step(Act.FORK, 1)


def test_a_slot_that_only_fails_does_not_stop_the_others() -> None:
    pool = Pool([Slot(0, None, is_stuck=True), Slot(1)])
    assert play(pool, [1]) == [Step(Act.FORK, 1), Step(Act.RETIRE, 1)]


def test_a_worker_that_waits_for_somebody_elses_gpus_holds_up_nobody() -> None:
    pool = Pool([Slot(0, "waiting", is_stuck=True), Slot(1)])
    play(pool, [0, 1])
    assert pool.slots[0].new == "waiting"
    assert pool.slots[1].new == "ready"


@pytest.mark.parametrize("other", ["loading", "starting", "draining"])
def test_a_serving_worker_stays_while_another_slot_comes(other: str) -> None:
    views = [SlotView(0, old="ready"), SlotView(1, new=other)]
    assert Roll().next_step(views) is None


def test_a_successor_whose_gpus_were_taken_meanwhile_keeps_the_others_serving() -> None:
    roll, other = Roll(), SlotView(1, old="ready")
    for view in (SlotView(0, old="ready"), SlotView(0, old="ready", new="waiting")):
        roll.next_step([view, other])
    assert roll.next_step([SlotView(0, new="waiting", is_stuck=True), other]) is None


def test_a_successor_that_vanished_is_forked_again() -> None:
    roll = Roll()
    roll.next_step([SlotView(0, old="ready")])
    assert roll.next_step([SlotView(0, old="ready")]) == Step(Act.FORK, 0)


def test_a_slot_in_its_back_off_gets_no_successor() -> None:
    assert Roll().next_step([SlotView(0, old="failed", is_held=True)]) is None
