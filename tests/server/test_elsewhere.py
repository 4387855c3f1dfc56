"""A request whose worker's engine dies is answered by another worker, or by the next."""

from __future__ import annotations

import concurrent.futures
from pathlib import Path

import pytest

from tests.pool import Pool, wait_until

pytestmark = pytest.mark.server

DIES = ("--model_name", "M", "--infer_type", "tests.engines.dies_on_demand:DiesOnDemand")


def kill_engine_beside(pool: Pool, num_others: int) -> tuple[int, list[object]]:
    """Let others run, then the request that kills the engine; its status, and their answers."""
    with concurrent.futures.ThreadPoolExecutor(num_others + 1) as threads:
        others = [threads.submit(pool.infer, f"other{i}", max_tokens=40) for i in range(num_others)]
        wait_until(
            lambda: sum(worker["inflight"] for worker in pool.workers()) >= num_others,
            10,
            "running requests",
        )
        status, _ = pool.post("/infer", {"instances": "die", "params": {"max_tokens": 2}})
        return status, [other.result() for other in others]


def expected(num_others: int) -> list[object]:
    return [[(f"other{i}" * 20)[:40]] for i in range(num_others)]


def test_with_one_worker_the_next_one_answers(tmp_path: Path) -> None:
    with Pool(tmp_path, *DIES, "--", "--token-s", "0.03") as pool:
        pool.wait_ready()
        status, answers = kill_engine_beside(pool, 3)
        assert answers == expected(3)
        # What kills every engine it meets is told so in the end.
        assert status == 503
        assert pool.wait_ready().infer("ab", max_tokens=2) == ["ab"]


def test_with_two_workers_both_may_die(tmp_path: Path) -> None:
    with Pool(tmp_path, *DIES, "--workers", "2", "--", "--token-s", "0.03") as pool:
        pool.wait_ready(workers=2)
        status, answers = kill_engine_beside(pool, 4)
        assert answers == expected(4)
        assert status == 503


def test_a_batch_whose_items_die_with_an_engine_is_run_elsewhere(tmp_path: Path) -> None:
    with Pool(tmp_path, *DIES, "--workers", "2", "--", "--token-s", "0.03") as pool:
        pool.wait_ready(workers=2)
        prompts = ["abcde", "die", *(f"{i:05}" for i in range(30))]
        body = {"instances": prompts, "params": {"max_tokens": 5}, "detail": True}
        status, answers = pool.post("/infer", body)
        assert status == 200, answers
        assert answers[1]["error"]["type"] == "unavailable_error"
        assert answers[1]["tries"] == 3
        texts = [answer["text"] for answer in answers]
        assert texts == ["abcde", None, *prompts[2:]]
