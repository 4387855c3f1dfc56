"""Big batches over all workers of a running pool: spread, retried, in order, cancelled."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import itertools
import json
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pool import SCRIPTED, Pool, is_alive, wait_until

pytestmark = [pytest.mark.server, pytest.mark.quiet]


@pytest.fixture(scope="module", name="pool")
def _pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Three workers of four slots; a token takes 20 ms."""
    flags = (*SCRIPTED, "--workers", "3", "--", "--token-s", "0.02", "--slots", "4")
    with Pool(tmp_path_factory.mktemp("pool"), *flags) as pool:
        yield pool.wait_ready(workers=3)


def ask(pool: Pool, prompts: list[str], max_tokens: int) -> list[dict[str, Any]]:
    params = {"max_tokens": max_tokens}
    body = {"instances": prompts, "params": params, "detail": True}
    status, answer = pool.post("/infer", body)
    assert status == 200, answer
    return list(answer)


def idle(pool: Pool) -> bool:
    return all(worker["inflight"] == 0 for worker in pool.workers())


def test_a_batch_runs_on_all_workers_and_comes_back_in_order(pool: Pool) -> None:
    prompts = [f"{i:03}" for i in range(120)]
    began = time.monotonic()
    answers = ask(pool, prompts, max_tokens=3)
    took = time.monotonic() - began
    assert [answer["text"] for answer in answers] == prompts
    assert all(answer["tries"] == 1 for answer in answers)
    counts = Counter(answer["replica"] for answer in answers)
    assert set(counts) == {0, 1, 2}
    assert min(counts.values()) >= 30
    assert took < 2 * (120 / 12) * 3 * 0.02 + 1
    wait_until(lambda: idle(pool), 5, "free slots")


def test_a_batch_that_is_over_is_run_by_nobody_again(pool: Pool) -> None:
    for _ in range(3):
        ask(pool, ["abc"] * 24, max_tokens=3)
    wait_until(lambda: idle(pool), 5, "an idle pool")
    assert "amid a batch" not in pool.log()


def test_a_batch_smaller_than_the_pool_goes_to_different_workers(pool: Pool) -> None:
    wait_until(lambda: idle(pool), 5, "an idle pool")
    answers = ask(pool, ["abc", "def", "ghi"], max_tokens=10)
    assert {answer["replica"] for answer in answers} == {0, 1, 2}


def test_one_slow_item_does_not_idle_its_worker(pool: Pool) -> None:
    answers = ask(pool, ["~", *("x" for _ in range(150))], max_tokens=5)
    beside = [answer for answer in answers[1:] if answer["replica"] == answers[0]["replica"]]
    assert len(beside) >= 30


def test_a_single_request_need_not_wait_for_the_end_of_a_batch(pool: Pool) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        batch = threads.submit(ask, pool, ["batch"] * 300, 5)
        wait_until(lambda: all(w["inflight"] >= 4 for w in pool.workers()), 5, "a full pool")
        asked = time.monotonic()
        assert pool.infer("single", max_tokens=6) == ["single"]
        waited_s = time.monotonic() - asked
        assert all(answer["text"] == "batch" for answer in batch.result())
        assert waited_s < (time.monotonic() - asked) / 2


def test_two_batches_at_once_both_go_on(pool: Pool) -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        large = threads.submit(ask, pool, ["large"] * 300, 5)
        wait_until(lambda: all(w["inflight"] >= 4 for w in pool.workers()), 5, "a full pool")
        small = threads.submit(ask, pool, ["small"] * 9, 5)
        assert [answer["text"] for answer in small.result()] == ["small"] * 9
        assert not large.done()
        large.result()


def test_a_client_that_leaves_ends_its_batch_everywhere(pool: Pool) -> None:
    client = pool.send_infer(["~x"] * 60, max_tokens=500)
    wait_until(lambda: all(w["inflight"] >= 4 for w in pool.workers()), 5, "a full pool")
    client.close()
    wait_until(lambda: idle(pool), 0.5 + 0.2, "the end of the batch")


@contextlib.contextmanager
def few_free_files(pid: int, count: int) -> Iterator[None]:
    """A running process can open so many more, whatever numbers are free."""
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = (number for number in itertools.count() if number not in taken)
    limit = next(itertools.islice(free, count, None))
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("num_free", [0, 1, 2])
def test_a_worker_without_free_files_takes_no_part_and_lives(pool: Pool, num_free: int) -> None:
    """It cannot even take a lane, or not what a lane needs."""
    prompts = [f"{i:02}" for i in range(60)]
    with Client(pool) as client:
        wait_until(lambda: idle(pool), 5, "an idle pool")
        poor = next(w for w in pool.workers() if w["pid"] != client.worker["pid"])
        with few_free_files(poor["pid"], num_free):
            answers = client.ask(prompts, 3)
        assert [answer["text"] for answer in answers] == [(text * 2)[:3] for text in prompts]
        assert is_alive(poor["pid"])
    wait_until(lambda: idle(pool), 5, "free slots")
    assert poor["pid"] in [worker["pid"] for worker in pool.workers()]


class Client:
    """One kept-alive connection, which belongs to the worker that answered last."""

    def __init__(self, pool: Pool) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", pool.port, timeout=60)
        (answer,) = self.ask(["x"], 1)
        self.worker = pool.workers()[answer["replica"]]
        """Who coordinates the next batch, as long as the pool is idle."""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def ask(self, prompts: list[str], max_tokens: int) -> list[dict[str, Any]]:
        params = {"max_tokens": max_tokens}
        body = {"instances": prompts, "params": params, "detail": True}
        self._connection.request("POST", "/infer", json.dumps(body))
        response = self._connection.getresponse()
        answer = json.load(response)
        assert response.status == 200, answer
        return list(answer)


@pytest.mark.parametrize("is_coordinator", [False, True], ids=["another", "the coordinator"])
def test_a_batch_outlives_a_killed_worker(tmp_path: Path, is_coordinator: bool) -> None:
    flags = (*SCRIPTED, "--workers", "3", "--", "--token-s", "0.02", "--slots", "4")
    with (
        Pool(tmp_path, *flags) as pool,
        Client(pool.wait_ready(workers=3)) as client,
        concurrent.futures.ThreadPoolExecutor(1) as threads,
    ):
        victim = next(
            worker["pid"]
            for worker in pool.workers()
            if (worker["pid"] == client.worker["pid"]) == is_coordinator
        )
        prompts = [f"{i:04}" for i in range(400)]
        batch = threads.submit(client.ask, prompts, 4)
        wait_until(lambda: all(w["inflight"] >= 4 for w in pool.workers()), 5, "a full pool")
        os.kill(victim, signal.SIGKILL)
        answers = batch.result()
        assert ("was killed amid a batch" in pool.log()) == is_coordinator
    assert [answer["text"] for answer in answers] == prompts
    again = [answer for answer in answers if answer["tries"] > 1]
    assert len(again) <= 4
    assert again or is_coordinator


def test_a_worker_that_leaves_need_not_wait_for_the_end_of_a_batch(tmp_path: Path) -> None:
    flags = (*SCRIPTED, "--workers", "2", "--", "--token-s", "0.02", "--slots", "2")
    with (
        Pool(tmp_path, *flags) as pool,
        concurrent.futures.ThreadPoolExecutor(1) as threads,
        Client(pool.wait_ready(workers=2)) as client,
    ):
        coordinator = client.worker["pid"]
        batch = threads.submit(client.ask, ["abcde"] * 200, 5)
        wait_until(lambda: all(w["inflight"] >= 2 for w in pool.workers()), 5, "a full pool")
        pid = next(w["pid"] for w in pool.workers() if w["pid"] != coordinator)
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not is_alive(pid), 3, "the end of the worker")
        assert not batch.done()
        assert [answer["text"] for answer in batch.result()] == ["abcde"] * 200


def test_a_stopping_pool_finishes_a_batch_that_it_accepted(tmp_path: Path) -> None:
    flags = (*SCRIPTED, "--workers", "2", "--", "--token-s", "0.02", "--slots", "2")
    with (
        Pool(tmp_path, *flags) as pool,
        concurrent.futures.ThreadPoolExecutor(1) as threads,
    ):
        pool.wait_ready(workers=2)
        batch = threads.submit(ask, pool, ["abcde"] * 80, 5)
        wait_until(lambda: all(w["inflight"] >= 2 for w in pool.workers()), 5, "a full pool")
        assert pool.stop() == 0
        assert [answer["text"] for answer in batch.result()] == ["abcde"] * 80
