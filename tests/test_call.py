"""One request while it is answered."""

from __future__ import annotations

import threading

from gpupool.call import Call, answering, current_call
from gpupool.scoreboard import Row
from gpupool.slots import Slots


def test_who_watches_is_told_once_when_the_client_hangs_up() -> None:
    call, told = Call(), []
    with call.watching(lambda: told.append("gone")):
        assert told == []
        call.hang_up()
        call.hang_up()
    assert told == ["gone"]
    assert call.is_gone


def test_who_begins_to_watch_later_is_told_at_once() -> None:
    call, told = Call(), []
    call.hang_up()
    with call.watching(lambda: told.append("gone")):
        assert told == ["gone"]


def test_who_watches_no_more_is_not_told() -> None:
    call, told = Call(), []
    with call.watching(lambda: told.append("gone")):
        pass
    call.hang_up()
    assert told == []


def test_nobody_is_being_told_when_the_watching_ends() -> None:
    """What the callback writes to may be closed then."""
    call, is_in, may_go_on, order = Call(), threading.Event(), threading.Event(), []

    def slow() -> None:
        is_in.set()
        may_go_on.wait(10)
        order.append("told")

    def watch() -> None:
        with call.watching(slow):
            is_in.wait(10)
        order.append("watched")

    threads = [threading.Thread(target=watch), threading.Thread(target=call.hang_up)]
    threads[0].start()
    while not call._callbacks:
        pass
    threads[1].start()
    assert is_in.wait(10)
    threads[0].join(0.2)
    may_go_on.set()
    for thread in threads:
        thread.join(10)
    assert order == ["told", "watched"]


def test_a_slot_is_given_back_once() -> None:
    slots = Slots(Row())
    slots.take()
    call = Call(slots)
    assert call.holds_slot
    call.step_aside()
    call.step_aside()
    assert slots.count == 0
    assert not call.holds_slot


def test_a_request_of_many_sequences_holds_a_slot_for_each() -> None:
    slots = Slots(Row())
    slots.take()
    call = Call(slots)
    call.hold_slots(4)
    assert slots.count == 4
    call.step_aside()
    call.hold_slots(4)
    assert slots.count == 0


def test_each_thread_answers_its_own_request() -> None:
    call, others = Call(), []
    with answering(call):
        assert current_call() is call
        thread = threading.Thread(target=lambda: others.append(current_call()))
        thread.start()
        thread.join()
    assert others[0] is not call
    assert current_call() is not call
