"""The shared memory in which the workers see each other."""

from __future__ import annotations

from gpupool.scoreboard import TRANSIT_S, Scoreboard

HERE, THERE = 0, 1


def test_what_was_handed_over_is_in_transit_until_it_arrives() -> None:
    board = Scoreboard(2)
    first, second = (board.note_handed_over(HERE, THERE) for _ in range(2))
    assert board.in_transit(THERE) == 2
    assert board.has_on_its_way(HERE)
    board.note_arrived(HERE, THERE, first)
    assert board.in_transit(THERE) == 1
    board.note_arrived(HERE, THERE, second)
    assert board.in_transit(THERE) == 0
    assert not board.has_on_its_way(HERE)


def test_what_could_not_be_sent_is_not_in_transit() -> None:
    board = Scoreboard(2)
    board.note_handed_over(HERE, THERE)
    board.take_back(HERE, THERE)
    assert board.in_transit(THERE) == 0


def test_what_a_worker_counted_but_never_sent_is_forgotten_with_the_next_that_arrives() -> None:
    """It was killed in between. Its successor has the same row, and so goes on counting."""
    board = Scoreboard(2)
    board.note_handed_over(HERE, THERE)
    board.claim(HERE)
    number = board.note_handed_over(HERE, THERE)
    board.note_arrived(HERE, THERE, number)
    assert board.in_transit(THERE) == 0


def test_what_a_worker_counted_but_never_sent_is_forgotten_after_a_while() -> None:
    """A worker with one slot would else never have it free again."""
    board = Scoreboard(2)
    board.note_handed_over(HERE, THERE)
    assert board.in_transit(THERE) == 1
    board._handed_over_at[THERE][HERE] -= TRANSIT_S
    assert board.in_transit(THERE) == 0
    assert not board.has_on_its_way(HERE)


def test_what_a_worker_leaves_to_its_own_successor_does_not_keep_it() -> None:
    board = Scoreboard(2)
    board.note_handed_over(HERE, HERE)
    assert board.in_transit(HERE) == 1
    assert not board.has_on_its_way(HERE)
