"""What a key may use: requests at once, tokens within any minute."""

from __future__ import annotations

import pytest

from gpupool.key_budget import (
    NUM_STEPS,
    STEP_S,
    KeyLimits,
    added,
    index_at,
    opens_in_s,
    spent,
    too_many,
    used_up,
)

BEGAN = 1_000_000.0  # of a clock; the beginning of a step
MINUTE_S = 60.0
LIMITS = KeyLimits(concurrency=4, tokens_per_minute=1000)


class Minute:
    """One worker's words of a key."""

    def __init__(self) -> None:
        self.words = [0] * NUM_STEPS

    def spend(self, tokens: int, now: float) -> Minute:
        at = index_at(now)
        self.words[at] = added(self.words[at], tokens, now)
        return self


# Requests at once.


@pytest.mark.parametrize(
    ("in_flight", "is_refused"), [(0, False), (3, False), (4, True), (9, True)]
)
def test_as_many_requests_as_the_limit_are_let_in(in_flight: int, is_refused: bool) -> None:
    assert (too_many(LIMITS, in_flight) is not None) is is_refused


def test_without_a_limit_any_number_of_requests_is_let_in() -> None:
    assert too_many(KeyLimits(tokens_per_minute=1), 10_000) is None


def test_who_has_too_many_requests_is_told_which_limit_and_what_to_do() -> None:
    refused = too_many(LIMITS, 4)
    assert refused is not None
    assert (refused.status, refused.code, refused.retry_after_s) == (429, "key_limit", 1)
    assert str(refused) == (
        "this API key has 4 requests in flight or waiting, and may have 4 (--key_concurrency); "
        "wait for one of them to end"
    )


# Tokens within a minute.


@pytest.mark.parametrize("offset_s", [0.0, 0.1, 2.5, 4.99])
@pytest.mark.parametrize("later_s", [0.0, 5.0, 30.0, 59.9])
def test_tokens_count_for_a_whole_minute(offset_s: float, later_s: float) -> None:
    words = Minute().spend(700, BEGAN + offset_s).words
    assert spent(words, BEGAN + offset_s + later_s) == 700


@pytest.mark.parametrize("offset_s", [0.0, 0.1, 2.5, 4.99])
def test_tokens_count_for_no_longer_than_a_minute_and_a_step(offset_s: float) -> None:
    words = Minute().spend(700, BEGAN + offset_s).words
    assert spent(words, BEGAN + offset_s + MINUTE_S + STEP_S) == 0


def test_tokens_of_all_steps_and_all_workers_add_up() -> None:
    one = Minute().spend(1, BEGAN).spend(2, BEGAN + 1).spend(4, BEGAN + 30)
    another = Minute().spend(8, BEGAN + 2).spend(16, BEGAN + 50)
    assert spent(one.words + another.words, BEGAN + 55) == 31


def test_a_word_forgets_the_step_that_had_it_before() -> None:
    minute = Minute().spend(700, BEGAN)
    again = BEGAN + NUM_STEPS * STEP_S
    assert index_at(again) == index_at(BEGAN)
    assert spent(minute.spend(5, again).words, again) == 5


def test_more_tokens_than_a_word_can_hold_do_not_spill_into_the_step() -> None:
    minute = Minute().spend((1 << 32) - 1, BEGAN).spend(2, BEGAN)
    assert spent(minute.words, BEGAN) == (1 << 32) - 1


def test_a_budget_is_open_until_it_is_used_up() -> None:
    assert used_up(LIMITS, Minute().spend(999, BEGAN).words, BEGAN) is None
    assert used_up(LIMITS, Minute().spend(1000, BEGAN).words, BEGAN) is not None


def test_a_budget_opens_when_it_said_that_it_would() -> None:
    """A wait in whole seconds is rounded up, so that nobody comes back too early."""
    words = Minute().spend(600, BEGAN).spend(600, BEGAN + 22).words
    now = BEGAN + 23.7
    refused = used_up(LIMITS, words, now)
    assert refused is not None
    assert refused.retry_after_s == 42  # at BEGAN + 65 the first 600 are forgotten: 41.3 s
    assert used_up(LIMITS, words, now + 41) is not None
    assert used_up(LIMITS, words, now + 42) is None


def test_a_budget_that_was_overdrawn_opens_when_enough_is_forgotten() -> None:
    words = Minute().spend(5000, BEGAN).spend(999, BEGAN + 10).spend(1, BEGAN + 20).words
    assert opens_in_s(words, 1000, BEGAN + 20) == 65 - 20 + 10  # 1 and 999 are still one too many
    assert opens_in_s(words, 1001, BEGAN + 20) == 65 - 20
    assert opens_in_s(words, 6001, BEGAN + 20) == 0


def test_without_a_limit_any_number_of_tokens_is_let_in() -> None:
    assert used_up(KeyLimits(concurrency=1), Minute().spend(1 << 31, BEGAN).words, BEGAN) is None


def test_who_has_used_up_the_minute_is_told_which_limit_and_when_it_opens() -> None:
    refused = used_up(LIMITS, Minute().spend(1200, BEGAN).words, BEGAN)
    assert refused is not None
    assert (refused.status, refused.code, refused.retry_after_s) == (429, "key_limit", 65)
    assert str(refused) == (
        "this API key has used 1200 tokens within a minute, and may use 1000 "
        "(--key_tokens_per_minute); try again in 65 s"
    )
