"""When a slot gets its next worker."""

from __future__ import annotations

import pytest

from gpupool.backoff import DELAYS_S, Backoff


def test_failed_loads_are_tried_again_later_and_later() -> None:
    backoff = Backoff(1)
    delays = [backoff.note_failure(0, 100.0) for _ in range(6)]
    assert delays == [1, 5, 30, 120, 120, 120]
    assert backoff[0].not_before == 220


def test_a_slot_that_fails_does_not_hold_up_another() -> None:
    backoff = Backoff(2)
    backoff.note_failure(0, 100.0)
    assert backoff[1].not_before == 0


def test_a_worker_that_was_ready_starts_the_count_anew() -> None:
    backoff = Backoff(1)
    for _ in range(3):
        backoff.note_failure(0, 100.0)
    backoff.note_ready(0)
    assert backoff.note_failure(0, 100.0) == DELAYS_S[0]


def test_a_worker_that_dies_after_long_service_is_replaced_at_once() -> None:
    backoff = Backoff(1)
    assert [backoff.note_death(0, 100.0, ready_s=61) for _ in range(5)] == [0] * 5


def test_workers_that_die_quickly_in_a_row_back_off() -> None:
    backoff = Backoff(1)
    delays = []
    for _ in range(5):
        backoff.note_ready(0)
        delays.append(backoff.note_death(0, 100.0, ready_s=3))
    assert delays == [0, 0, 1, 5, 30]


def test_one_long_life_ends_the_row_of_quick_deaths() -> None:
    backoff = Backoff(1)
    for _ in range(4):
        backoff.note_death(0, 100.0, ready_s=3)
    backoff.note_death(0, 200.0, ready_s=100)
    assert backoff.note_death(0, 300.0, ready_s=3) == 0


def test_four_failures_of_every_slot_are_hopeless() -> None:
    backoff = Backoff(2)
    for _ in range(4):
        backoff.note_failure(0, 0.0)
    for _ in range(3):
        backoff.note_failure(1, 0.0)
        assert not backoff.is_hopeless
    backoff.note_failure(1, 0.0)
    assert backoff.is_hopeless


def test_a_permanent_failure_of_every_slot_is_hopeless_at_once() -> None:
    backoff = Backoff(2)
    backoff.note_failure(0, 0.0, is_permanent=True)
    assert not backoff.is_hopeless
    backoff.note_failure(1, 0.0, is_permanent=True)
    assert backoff.is_hopeless


def test_a_pool_that_once_served_is_never_hopeless() -> None:
    backoff = Backoff(1)
    backoff.note_ready(0)
    for _ in range(10):
        backoff.note_failure(0, 0.0, is_permanent=True)
    assert not backoff.is_hopeless


@pytest.mark.parametrize("is_permanent", [True, False])
def test_what_is_forgiven_is_tried_at_once(is_permanent: bool) -> None:
    backoff = Backoff(1)
    for _ in range(3):
        backoff.note_failure(0, 100.0, is_permanent=is_permanent)
    backoff.forgive()
    assert backoff[0].not_before == 0
    assert not backoff.is_hopeless
