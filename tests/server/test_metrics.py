"""/metrics and /pool of a running pool: the whole pool from any worker, whoever dies."""

from __future__ import annotations

import concurrent.futures
import http.client
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpupool.capabilities import FEATURES
from tests.machine import fake_machine, uuid_of
from tests.pool import SCRIPTED, Pool, wait_until
from tests.scrape import Samples, scrape, total

pytestmark = pytest.mark.server


@pytest.fixture(scope="module", name="pool")
def _pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    flags = (*SCRIPTED, "--workers", "2", "--threads", "2", "--read_timeout_s", "1")
    with Pool(tmp_path_factory.mktemp("pool"), *flags, "--", "--token-s", "0.01") as pool:
        yield pool.wait_ready(workers=2)


class Clients:
    """Asks /infer and counts what it was answered; an answer that never came is not counted."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.counts: Counter[str] = Counter()

    def ask(self, count: int, max_tokens: int) -> concurrent.futures.Future[None]:
        """So many requests at once, from threads of their own."""
        over: concurrent.futures.Future[None] = concurrent.futures.Future()

        def run() -> None:
            with concurrent.futures.ThreadPoolExecutor(8) as threads:
                sizes = [max_tokens] * count
                for answered in threads.map(self._ask_one, range(count), sizes):
                    self.counts.update(answered)
            over.set_result(None)

        threading.Thread(target=run).start()
        return over

    def _ask_one(self, number: int, max_tokens: int) -> dict[str, int]:
        body = {
            "instances": ["ab", "c" * (1 + number % 5)],
            "params": {"max_tokens": max_tokens, "n": 1 + number % 2},
            "detail": True,
        }
        try:
            status, items = self._pool.post("/infer", body)
        except (OSError, http.client.HTTPException):
            return {}
        assert status == 200
        items = [item if isinstance(item, list) else [item] for item in items]
        return {
            "requests": 1,
            "prompt": sum(completions[0]["prompt_tokens"] for completions in items),
            "generated": sum(one["completion_tokens"] for item in items for one in item),
        }


class Scraper:
    """Scrapes without pause until it is stopped."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.scrapes: list[Samples] = []

    def __enter__(self) -> Scraper:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self.scrapes.append(scrape(self._pool))
            except (OSError, http.client.HTTPException):
                continue  # the worker that was asked was killed

    def setbacks(self) -> list[object]:
        """Counters that went back, or away, from one scrape to the next."""
        endings = ("_total", "_count", "_sum", "_bucket")
        return [
            (key, before[key], after.get(key))
            for before, after in zip(self.scrapes, self.scrapes[1:], strict=False)
            for key in before
            if key[0].startswith("gpupool_")
            and key[0].endswith(endings)
            and after.get(key, -1) < before[key]
        ]


def test_over_a_sigkill_no_counter_goes_back_and_the_sums_are_the_clients(pool: Pool) -> None:
    before = scrape(pool)
    clients = Clients(pool)
    with Scraper(pool) as scraper:
        clients.ask(60, max_tokens=3).result()
        # What the victim is at when it dies is far from its end, so that no answer is decided
        # and lost on the way.
        long = clients.ask(4, max_tokens=150)
        victims = wait_until(
            lambda: [w for w in pool.workers() if w["inflight"] >= 2], 10, "a busy worker"
        )
        os.kill(victims[0]["pid"], signal.SIGKILL)
        long.result()
        clients.ask(60, max_tokens=3).result()
        pool.wait_ready(workers=2)
        wait_until(lambda: len(scraper.scrapes) >= 100, 30, "a hundred scrapes")
    after = scrape(pool)
    assert scraper.setbacks() == []
    grown = {
        "requests": _growth(before, after, "requests_total", route="/infer", status="200"),
        "prompt": _growth(before, after, "prompt_tokens_total"),
        "generated": _growth(before, after, "generated_tokens_total"),
    }
    assert grown == clients.counts
    assert clients.counts["requests"] >= 120
    assert _growth(before, after, "restarts_total") == 1


def _growth(before: Samples, after: Samples, name: str, **labels: str) -> float:
    name = f"gpupool_{name}"
    return total(after, name, **labels) - total(before, name, **labels)


def test_the_answers_of_every_worker_are_in_every_scrape(pool: Pool) -> None:
    wait_until(
        lambda: all(
            total(scrape(pool), "gpupool_requests_total", worker=slot, route="/metrics") > 3
            for slot in "01"
        ),
        20,
        "scrapes answered by both workers",
    )
    for _ in range(10):
        samples = scrape(pool)
        for slot in "01":
            assert total(samples, "gpupool_worker_state", worker=slot, state="ready") == 1
            assert total(samples, "gpupool_worker_memory_bytes", worker=slot) > 1 << 20


def test_the_status_has_every_number_of_every_worker(pool: Pool) -> None:
    status = pool.get("/pool")[1]
    names = "slot pid state gpus phase inflight waiting served restarts last_error memory_bytes "
    names += "generated_tokens seen_tokens gpu_use"
    assert [worker["slot"] for worker in status["workers"]] == [0, 1]
    for worker in status["workers"]:
        assert set(names.split()) <= worker.keys()
        assert worker["pid"] in pool.pids()
    assert status["capabilities"].keys() == FEATURES.keys()


def test_what_each_workers_engine_tells_is_in_every_scrape(tmp_path: Path) -> None:
    engine = "tests.engines.tells_metrics:TellsMetrics"
    flags = ("--model_name", "M", "--infer_type", engine, "--workers", "2")
    with Pool(tmp_path, *flags) as pool:
        pool.wait_ready(workers=2)
        for _ in range(5):
            samples = scrape(pool)
            assert [total(samples, "own_steps_total", worker=slot) for slot in "01"] == [3, 3]


def test_a_worker_that_stands_still_holds_up_no_scrape(tmp_path: Path) -> None:
    engine = "tests.engines.tells_metrics:TellsMetrics"
    flags = ("--model_name", "M", "--infer_type", engine, "--workers", "2")
    with Pool(tmp_path, *flags) as pool:
        still, _ = pool.wait_ready(workers=2).workers()
        os.kill(still["pid"], signal.SIGSTOP)
        began = time.monotonic()
        assert total(scrape(pool), "own_steps_total") == 3
        assert time.monotonic() - began < 3
        os.kill(still["pid"], signal.SIGCONT)


def test_what_was_refused_before_the_application_is_counted(pool: Pool) -> None:
    before = scrape(pool)
    large = b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n"
    for raw in (b"hello\r\n\r\n", large):
        with socket.create_connection(("127.0.0.1", pool.port), timeout=10) as client:
            client.sendall(raw)
            assert client.recv(12).startswith(b"HTTP/1.1 4")
    after = scrape(pool)
    for status, route in {"400": "unreadable", "413": "/infer"}.items():
        grown = _growth(before, after, "requests_total", route=route, status=status)
        assert grown == 1


def test_metrics_are_answered_while_every_thread_is_busy(pool: Pool) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(pool.infer, "ab", max_tokens=150) for _ in range(8)]
        [slot, *_] = wait_until(
            lambda: [str(w["slot"]) for w in pool.workers() if w["inflight"] >= 3], 10, "a full one"
        )
        before = scrape(pool)
        wait_until(
            lambda: _growth(before, scrape(pool), "requests_total", worker=slot, route="/metrics"),
            5,
            "a scrape that this worker answered",
        )
        assert not any(one.done() for one in asked)


def test_served_counts_generations_alone(pool: Pool) -> None:
    before = sum(worker["served"] for worker in pool.workers())
    pool.infer("ab", max_tokens=2)
    pool.post("/infer", {"instances": []})
    assert sum(worker["served"] for worker in pool.workers()) == before + 1


def test_gpus_are_told_about(tmp_path: Path) -> None:
    with fake_machine(tmp_path, gpus=2) as machine:
        machine.set_gpu(0, utilization=85, temperature=61, milliwatts=512500)
        with Pool(tmp_path, *SCRIPTED, "--per_proc_gpus", "2", env=machine.env()) as pool:
            pool.wait_ready()
            samples = wait_until(
                lambda: _if_any(scrape(pool), "gpupool_gpu_temperature_celsius"), 10, "a meter"
            )
            gpu = {"worker": "0", "gpu": uuid_of(0)}
            assert total(samples, "gpupool_gpu_temperature_celsius", **gpu) == 61
            assert total(samples, "gpupool_gpu_utilization_ratio", **gpu) == 0.85
            assert total(samples, "gpupool_gpu_power_watts", **gpu) == 512.5
            assert total(samples, "gpupool_gpu_memory_total_bytes", worker="0") == 2 * 141 << 30
            assert total(samples, "gpupool_lease", worker="0") == 2
            [worker] = pool.workers()
            machine.set_process(1, worker["pid"], 7 << 30)
            wait_until(
                lambda: pool.workers()[0]["memory_bytes"] == 7 << 30, 10, "the memory in use"
            )


def _if_any(samples: Samples, name: str) -> Samples | None:
    return samples if any(found == name for found, _ in samples) else None


def test_of_a_worker_without_gpus_nothing_is_made_up(tmp_path: Path) -> None:
    with fake_machine(tmp_path, gpus=1) as machine:
        machine.set_process(0, 1, 5 << 30)
        with Pool(tmp_path, *SCRIPTED, env=machine.env()) as pool:
            wait_until(lambda: "waits for its GPUs" in pool.log(), 20, "a waiting worker")
            [worker] = pool.workers()
            assert worker["gpus"] == []
            assert worker["memory_bytes"] is None
            assert worker["estimate_s"] is None
            assert _if_any(scrape(pool), "gpupool_worker_memory_bytes") is None
