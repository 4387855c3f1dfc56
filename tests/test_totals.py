"""Counters in shared memory: whole numbers whoever dies, none lost, none set back."""

from __future__ import annotations

import sys
import threading

import pytest

from gpupool.scoreboard import Scoreboard
from gpupool.totals import HISTOGRAMS, MAX_BUCKETS, PoolTotals, Totals, added
from tests.forked import Forked, Say

# Its two halves are equal, so that half a written number shows.
STEP = (1 << 32) + 1


def count_for_ever(totals: Totals, say: Say) -> None:
    say("counting")
    while True:
        totals.tokens(prompt=STEP)


def test_threads_of_a_worker_lose_no_count() -> None:
    totals = PoolTotals(1)[0]

    def count() -> None:
        for _ in range(3000):
            totals.tokens(prompt=1, generated=2)
            totals.observe("queue_time_seconds", 1.0)
            totals.request("/infer", 200)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert (totals.prompt_tokens, totals.generated_tokens) == (12_000, 24_000)
    assert sum(totals.observations("queue_time_seconds").counts) == 12_000
    assert totals.observations("queue_time_seconds").sum == 12_000
    assert totals.requests() == {("/infer", 200, ""): 12_000}


def test_a_worker_killed_while_it_counts_leaves_whole_numbers() -> None:
    totals = PoolTotals(1)[0]
    last = 0
    for _ in range(20):
        with Forked(lambda say: count_for_ever(totals, say)) as worker:
            worker.hear()
            until = last + 1000 * STEP
            while last < until:
                seen = totals.prompt_tokens
                assert seen % STEP == 0
                assert seen >= last
                last = seen
            worker.kill()


def test_a_rows_next_worker_counts_on() -> None:
    scoreboard = Scoreboard(2)
    index = scoreboard.rows_of(1)[1]

    def answer_one(say: Say) -> None:
        scoreboard.totals[index].request("/infer", 200, "")
        say("done")

    for _ in range(3):
        scoreboard.claim(index)
        with Forked(answer_one) as worker:
            worker.hear()
    assert scoreboard.totals[index].requests() == {("/infer", 200, ""): 3}


def test_a_value_on_a_bound_is_in_that_bucket() -> None:
    totals = PoolTotals(1)[0]
    bounds = HISTOGRAMS["queue_time_seconds"].bounds
    totals.observe("queue_time_seconds", bounds[2])
    totals.observe("queue_time_seconds", bounds[-1] + 1, count=5)
    counts = totals.observations("queue_time_seconds").counts
    assert (counts[2], counts[-1]) == (1, 5)
    assert len(counts) == len(bounds) + 1


def test_a_clock_that_steps_back_takes_nothing_away() -> None:
    totals = PoolTotals(1)[0]
    totals.observe("queue_time_seconds", -3.0)
    assert totals.observations("queue_time_seconds").sum == 0


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/infer", "/infer"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/rerank", "/v1/rerank"),
        ("/v2/rerank", "/v1/rerank"),
        ("/score", "/v1/score"),
        ("/v1/anything/else", "/v1/other"),
        ("/etc/passwd", "other"),
        ("", "other"),
    ],
)
def test_odd_paths_make_no_labels(path: str, label: str) -> None:
    totals = PoolTotals(1)[0]
    totals.request(path, 404)
    assert totals.requests() == {(label, 404, ""): 1}


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_bounds_rise_and_fit(name: str) -> None:
    bounds = HISTOGRAMS[name].bounds
    assert list(bounds) == sorted(set(bounds))
    assert len(bounds) < MAX_BUCKETS


def test_histograms_of_two_rows_add_up() -> None:
    pool = PoolTotals(2)
    pool[0].observe("queue_time_seconds", 0.02)
    pool[1].observe("queue_time_seconds", 0.02, count=2)
    both = added(pool[index].observations("queue_time_seconds") for index in range(2))
    assert both.counts[2] == 3
    assert both.sum == pytest.approx(0.06)
