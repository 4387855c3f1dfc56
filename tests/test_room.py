"""The room in which requests wait."""

from __future__ import annotations

import time
import weakref

from gpupool.call import History
from gpupool.room import Room


class Guest:
    """What the room looks at of a connection."""

    def __init__(self, since: float) -> None:
        self.history = History(since)


def names(room: Room, guests: dict[str, Guest]) -> list[str]:
    """Everybody, in the order in which they may leave."""
    found = []
    while (first := room.first()) is not None:
        found.append(next(name for name, guest in guests.items() if guest is first))
        room.remove(first)
    return found


def fill(room: Room, **since: float) -> dict[str, Guest]:
    guests = {name: Guest(when) for name, when in since.items()}
    for guest in guests.values():
        room.add(guest)  # type: ignore[arg-type]
    return guests


def test_who_waits_longest_goes_first_wherever_it_waited_before() -> None:
    room = Room(60)
    guests = fill(room, second=20.0, third=30.0, first=10.0)
    assert room.oldest == 10.0
    assert names(room, guests) == ["first", "second", "third"]


def test_who_left_is_not_there_any_more() -> None:
    room = Room(60)
    guests = fill(room, a=1.0, b=2.0, c=3.0)
    room.remove(guests["a"])  # type: ignore[arg-type]
    assert len(room) == 2
    assert room.oldest == 2.0
    assert names(room, guests) == ["b", "c"]


def test_those_whose_time_is_over_are_taken_out() -> None:
    room = Room(60)
    now = time.monotonic()
    guests = fill(room, late=now - 61, later=now - 70, fresh=now - 5)
    assert room.take_expired() == [guests["later"], guests["late"]]
    assert names(room, guests) == ["fresh"]


def test_those_who_leave_behind_somebody_who_waits_long_are_not_kept() -> None:
    """Each has a body; clients that give up and try again would fill the memory."""
    room = Room(60)
    fill(room, patient=1.0)
    left = []
    for number in range(100):
        [guest] = fill(room, impatient=2.0 + number).values()
        room.remove(guest)  # type: ignore[arg-type]
        left.append(weakref.ref(guest))
        del guest
    assert sum(guest() is not None for guest in left) <= 1
