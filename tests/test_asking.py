"""Asking siblings for requests that wait longer than one's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpupool import asking
from gpupool.asking import Asking
from gpupool.balancer import View
from gpupool.mailbox import Mailboxes
from tests.mailboxes import open_mailboxes

OWN = View(index=0, state="ready", is_ready=True, slots=4, running=1)
OLDER = View(index=1, state="ready", is_ready=True, slots=4, running=4, waiting=3, oldest=10.0)
SINCE = 11.0  # for as long the first of one's own waits


class Clock:
    """What `time` is for the module under test."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(name="clock")
def _clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(asking, "time", clock)
    return clock


@pytest.fixture(name="mailboxes")
def _mailboxes() -> Iterator[Mailboxes]:
    with open_mailboxes(2) as found:
        yield found


def counts_asked(mailboxes: Mailboxes) -> list[int]:
    """For how many requests the sibling was asked, question by question."""
    counts = []
    while (message := mailboxes.receive(1)) is not None:
        assert (message.kind, message.sender) == ("ask", 0)
        counts.append(message.fields["count"])
    return counts


def test_idle_slots_are_filled_from_a_sibling(clock: Clock, mailboxes: Mailboxes) -> None:
    Asking(0, mailboxes).ask(OWN, [OLDER])
    assert counts_asked(mailboxes) == [3]


def test_a_sibling_is_not_asked_again_at_once(clock: Clock, mailboxes: Mailboxes) -> None:
    asked = Asking(0, mailboxes)
    asked.ask(OWN, [OLDER])
    clock.now += asking.ASK_AGAIN_S / 2
    asked.ask(OWN, [OLDER])
    assert counts_asked(mailboxes) == [3]
    clock.now += 2 * asking.ASK_AGAIN_S
    asked.ask(OWN, [OLDER])
    assert counts_asked(mailboxes) == [3]


def test_a_slot_is_kept_for_one_that_waits_longer(clock: Clock, mailboxes: Mailboxes) -> None:
    asked = Asking(0, mailboxes)
    assert asked.keeps_slot(SINCE, OWN, [OLDER])
    clock.now += asking.KEEP_SLOT_S / 2
    assert asked.keeps_slot(SINCE, OWN, [OLDER])
    assert counts_asked(mailboxes) == [1]  # the slot is one


def test_the_next_slot_is_kept_for_the_next_one(clock: Clock, mailboxes: Mailboxes) -> None:
    asked = Asking(0, mailboxes)
    for _ in range(3):
        assert asked.keeps_slot(SINCE, OWN, [OLDER])
        asked.note_arrived()
    assert counts_asked(mailboxes) == [1, 1, 1]


def test_a_slot_does_not_stay_empty_for_a_sibling_that_says_nothing(
    clock: Clock, mailboxes: Mailboxes
) -> None:
    asked = Asking(0, mailboxes)
    assert asked.keeps_slot(SINCE, OWN, [OLDER])
    clock.now += asking.KEEP_SLOT_S
    for _ in range(9):
        assert not asked.keeps_slot(SINCE, OWN, [OLDER])
        clock.now += asking.DO_WITHOUT_S / 10
    assert counts_asked(mailboxes) == [1]
    clock.now += asking.DO_WITHOUT_S
    assert asked.keeps_slot(SINCE, OWN, [OLDER])


def test_nor_for_one_that_has_nothing_left(clock: Clock, mailboxes: Mailboxes) -> None:
    asked = Asking(0, mailboxes)
    assert asked.keeps_slot(SINCE, OWN, [OLDER])
    asked.note_nothing()
    clock.now += 2 * asking.ASK_AGAIN_S
    assert not asked.keeps_slot(SINCE, OWN, [OLDER])


def test_nor_for_one_that_cannot_be_asked(clock: Clock, mailboxes: Mailboxes) -> None:
    asked = Asking(0, mailboxes)
    clock.now += 1
    for _ in range(100_000):  # until its mailbox is full
        if not asked.keeps_slot(SINCE, OWN, [OLDER]):
            break
        asked.note_arrived()
    else:
        pytest.fail("a full mailbox still takes questions")
