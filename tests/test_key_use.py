"""What each key uses, counted by several workers: nobody's number is another's."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from gpupool.key_budget import spent
from gpupool.key_use import MAX_PROBES, NUM_PLACES, NUM_SENT, TRANSIT_S, KeyUse, Sent
from gpupool.scoreboard import Scoreboard
from tests.forked import Forked, Say

KEY, OTHER = 0x1234_5678_9ABC_DEF0, 0xFEDC_BA98_7654_3210
NOW = 1_000_000.0
ALL = range(3)


@pytest.fixture(name="use")
def _use() -> KeyUse:
    return KeyUse(len(ALL))


def crowd(count: int) -> list[int]:
    """Keys that all want the same place."""
    return [KEY + number * NUM_PLACES for number in range(count)]


# Requests in flight.


def test_requests_of_all_workers_add_up(use: KeyUse) -> None:
    for row in (0, 0, 2):
        assert use.begin(row, KEY, NOW)
    assert use.in_flight(KEY, ALL, NOW) == 3


def test_a_request_that_ended_does_not_count(use: KeyUse) -> None:
    use.begin(1, KEY, NOW)
    use.end(1, KEY)
    assert use.in_flight(KEY, ALL, NOW) == 0


def test_another_key_is_not_counted(use: KeyUse) -> None:
    use.begin(1, KEY, NOW)
    assert use.in_flight(OTHER, ALL, NOW) == 0


def test_workers_that_are_gone_do_not_count(use: KeyUse) -> None:
    use.begin(0, KEY, NOW)
    use.begin(1, KEY, NOW)
    use.send(1, KEY, 2, NOW)
    assert use.in_flight(KEY, [0, 2], NOW) == 1


def test_a_worker_that_was_killed_leaves_nothing_to_the_next_one_of_its_row() -> None:
    scoreboard = Scoreboard(1)

    def hold(say: Say) -> None:
        scoreboard.key_use.begin(0, KEY, NOW)
        scoreboard.key_use.begin(0, KEY, NOW)
        scoreboard.key_use.send(0, KEY, 1, NOW)
        scoreboard.key_use.spend(0, KEY, 700, NOW)
        say("held")

    with Forked(hold) as worker:
        worker.hear()
        assert scoreboard.key_use.in_flight(KEY, [0], NOW) == 2
        worker.kill()
    scoreboard.claim(0)
    assert scoreboard.key_use.in_flight(KEY, [0], NOW) == 0
    assert spent(scoreboard.key_use.minute(KEY), NOW) == 700  # they were used all the same


# On the way from one worker to another.


def test_a_request_on_its_way_counts_once(use: KeyUse) -> None:
    use.begin(0, KEY, NOW)
    use.send(0, KEY, 1, NOW)
    assert use.in_flight(KEY, ALL, NOW) == 1
    assert use.take_over(1, KEY, Sent(0, 1, NOW), NOW)
    assert use.in_flight(KEY, ALL, NOW) == 1


def test_only_what_has_arrived_is_taken_from_those_on_their_way(use: KeyUse) -> None:
    for later_s, to in enumerate((1, 2, 1, 2, 2)):
        use.begin(0, KEY, NOW)
        use.send(0, KEY, to, NOW + later_s)
    use.take_over(2, KEY, Sent(0, 2, NOW + 1), NOW)
    use.end(2, KEY)
    assert use.in_flight(KEY, ALL, NOW + 4) == 4


def test_what_could_not_be_sent_stays_counted_here(use: KeyUse) -> None:
    use.begin(0, KEY, NOW)
    use.send(0, KEY, 1, NOW)
    use.take_back(0, KEY, NOW)
    assert use.in_flight(KEY, ALL, NOW) == 1
    use.end(0, KEY)
    assert use.in_flight(KEY, ALL, NOW) == 0


def test_what_never_arrives_is_forgotten(use: KeyUse) -> None:
    use.begin(0, KEY, NOW)
    use.send(0, KEY, 1, NOW)
    assert use.in_flight(KEY, ALL, NOW + TRANSIT_S - 1) == 1
    assert use.in_flight(KEY, ALL, NOW + TRANSIT_S) == 0


def test_any_number_of_requests_may_be_sent_one_after_the_other(use: KeyUse) -> None:
    for second in range(3 * NUM_SENT):
        use.begin(0, KEY, NOW)
        use.send(0, KEY, 1, NOW + second)
        use.take_over(1, KEY, Sent(0, 1, NOW + second), NOW)
        use.end(1, KEY)
    later = NOW + 3 * NUM_SENT
    assert use.in_flight(KEY, ALL, later) == 0
    use.begin(0, KEY, NOW)
    use.send(0, KEY, 1, later)
    assert use.in_flight(KEY, ALL, later) == 1


def test_whoever_looks_while_a_request_moves_sees_it_once() -> None:
    """Between two workers that send it to each other as fast as they can."""
    use = KeyUse(2)
    use.begin(0, KEY, NOW)

    def pass_around(say: Say) -> None:
        say("moving")
        for second in itertools.count():
            for sender, to in ((0, 1), (1, 0)):
                sent = Sent(sender, to, NOW + second)
                use.send(sender, KEY, to, sent.at)
                time.sleep(0.00001)  # for a reader that is fast enough to find it at rest
                use.take_over(to, KEY, sent, NOW)
                time.sleep(0.00001)

    with Forked(pass_around) as mover:
        mover.hear()
        seen = {use.in_flight(KEY, (0, 1), NOW) for _ in range(5000)}
    assert seen == {1}


# Tokens.


def test_tokens_of_all_workers_add_up(use: KeyUse) -> None:
    for row in (0, 2):
        use.begin(row, KEY, NOW)
        use.spend(row, KEY, 300, NOW)
    assert spent(use.minute(KEY), NOW) == 600
    assert spent(use.minute(OTHER), NOW) == 0


# The places.


def test_keys_that_want_the_same_place_get_one_each(use: KeyUse) -> None:
    for number, key in enumerate(crowd(MAX_PROBES)):
        use.begin(0, key, NOW)
        use.spend(0, key, number, NOW)
    assert [use.in_flight(key, ALL, NOW) for key in crowd(MAX_PROBES)] == [1] * MAX_PROBES
    assert [spent(use.minute(key), NOW) for key in crowd(MAX_PROBES)] == list(range(MAX_PROBES))


def test_where_no_place_is_left_a_key_is_refused(use: KeyUse) -> None:
    *those_before, last = crowd(MAX_PROBES + 1)
    assert all(use.begin(0, key, NOW) for key in those_before)
    assert not use.begin(0, last, NOW)
    assert use.in_flight(last, ALL, NOW) == 0


def test_a_key_that_uses_nothing_leaves_its_place_to_the_next(use: KeyUse) -> None:
    *those_before, last = crowd(MAX_PROBES + 1)
    for key in those_before:
        use.begin(0, key, NOW)
    idle = those_before[40]
    use.spend(0, idle, 7, NOW)
    use.end(0, idle)
    assert not use.begin(0, last, NOW)  # its tokens still count
    assert use.begin(0, last, NOW + 65)
    assert spent(use.minute(last), NOW) == 0
    assert use.in_flight(those_before[-1], ALL, NOW) == 1


def test_thousands_of_keys_have_a_place_each(use: KeyUse) -> None:
    """As digests lie: anywhere."""
    dice = random.Random(1)
    keys = [dice.getrandbits(64) for _ in range(NUM_PLACES // 2)]
    assert all(use.begin(0, key, NOW) for key in keys)
    assert all(use.in_flight(key, [0], NOW) == 1 for key in keys)
