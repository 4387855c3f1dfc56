"""Engines that hang are found and replaced; slow ones live."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.pool import Pool, is_alive, wait_until

pytestmark = [pytest.mark.server, pytest.mark.timeout(90)]

Answer = Future[tuple[int, Any]]


@pytest.fixture(name="threads")
def _threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def engine_flags(name: str) -> tuple[str, ...]:
    return ("--model_name", "M", "--infer_type", f"tests.engines.{name}")


def ask(pool: Pool, threads: ThreadPoolExecutor, prompt: str = "abc") -> Answer:
    """A request that the engine has when this returns."""
    before = pool.workers()[0]["inflight"]
    body = {"instances": prompt, "params": {"max_tokens": 3}}
    answer = threads.submit(pool.post, "/infer", body)
    wait_until(lambda: pool.workers()[0]["inflight"] > before, 10, "a request in flight")
    return answer


def engine_child(worker: int) -> psutil.Process:
    """The engine's process of a worker; the guardian is in a group of its own."""
    [child] = [
        child for child in psutil.Process(worker).children() if os.getpgid(child.pid) == worker
    ]
    return child


def is_replaced(pool: Pool, worker: int) -> bool:
    try:
        return all(other["pid"] not in (0, worker) for other in pool.workers())
    except OSError:
        return False


def assert_unavailable(answer: Answer) -> None:
    status, body = answer.result(10)
    assert status == 503
    assert body["error"]["type"] == "unavailable_error"


def test_a_stopped_engine_process_is_found_and_replaced_within_5_s(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    with Pool(tmp_path, *engine_flags("in_child:InChild"), "--", "--token-s", "1") as pool:
        pool.wait_ready()
        worker = pool.workers()[0]["pid"]
        child = engine_child(worker)
        answer = ask(pool, threads)
        child.suspend()
        began = time.monotonic()
        assert_unavailable(answer)
        wait_until(lambda: not is_alive(child.pid), 5, "the end of the stopped process")
        wait_until(lambda: is_replaced(pool, worker), 5, "a new worker")
        assert time.monotonic() - began < 5
        reason = f"engine process {child.pid} ({child_name()}) is stopped (SIGSTOP) with 1 sequence"
        assert reason in pool.workers()[0]["last_error"]
        pool.wait_ready()
        assert pool.infer("abc", max_tokens=1) == ["a"]


def child_name() -> str:
    """What the kernel calls a process of this interpreter's."""
    return Path("/proc/self/comm").read_text().strip()


def test_a_stopped_process_of_an_idle_engine_is_left_alone(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    """It is found when it gets work; continued before that, it goes on as if nothing had been."""
    with Pool(tmp_path, *engine_flags("in_child:InChild")) as pool:
        pool.wait_ready()
        worker = pool.workers()[0]["pid"]
        child = engine_child(worker)
        child.suspend()
        time.sleep(3)  # nothing shall happen, so there is nothing to wait for
        assert is_alive(child.pid)
        child.resume()
        assert pool.infer("abc", max_tokens=3) == ["abc"]
        assert pool.workers()[0]["pid"] == worker


@pytest.mark.parametrize(
    ("engine", "prompt"),
    [("in_child:InChild", "wait"), ("sleeps_for_ever:SleepsForEver", "abc")],
    ids=["in a child", "in the worker"],
)
def test_an_engine_that_neither_computes_nor_progresses_is_replaced_within_15_s(
    tmp_path: Path, threads: ThreadPoolExecutor, engine: str, prompt: str
) -> None:
    with Pool(tmp_path, *engine_flags(engine)) as pool:
        pool.wait_ready()
        worker = pool.workers()[0]["pid"]
        began = time.monotonic()
        assert_unavailable(ask(pool, threads, prompt))
        wait_until(lambda: is_replaced(pool, worker), 15, "a new worker")
        assert 10 < time.monotonic() - began < 15
        assert "neither computed nor progressed" in pool.workers()[0]["last_error"]


def test_requests_that_the_worker_reads_do_not_pass_for_its_engines_work(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    """Probes alone take the worker more CPU time than what counts as computing."""
    with Pool(tmp_path, *engine_flags("in_child:InChild")) as pool:
        pool.wait_ready()
        worker = pool.workers()[0]["pid"]
        began = time.monotonic()
        answer = ask(pool, threads, "wait")
        spent = psutil.Process(worker).cpu_times()
        while not answer.done():
            assert pool.get("/livez")[0] == 200
            now = psutil.Process(worker).cpu_times()
            assert time.monotonic() - began < 15
        assert now.user + now.system - spent.user - spent.system > 1
        assert_unavailable(answer)


def test_an_engine_that_does_not_even_end_its_requests_is_replaced(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    with Pool(tmp_path, *engine_flags("ignores_die:IgnoresDie")) as pool:
        pool.wait_ready()
        worker = pool.workers()[0]["pid"]
        began = time.monotonic()
        answer = ask(pool, threads)
        assert isinstance(answer.exception(20), OSError)
        wait_until(lambda: is_replaced(pool, worker), 15, "a new worker")
        assert time.monotonic() - began < 15


def test_an_engine_that_computes_without_a_step_is_replaced_after_the_stall_timeout(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    flags = (*engine_flags("long_prefill:LongPrefill"), "--stall_timeout_s", "3")
    with Pool(tmp_path, *flags, "--", "--token-s", "20") as pool:
        pool.wait_ready()
        worker = pool.workers()[0]["pid"]
        assert_unavailable(ask(pool, threads))
        wait_until(lambda: is_replaced(pool, worker), 10, "a new worker")
        assert "has made no progress for" in pool.workers()[0]["last_error"]


@pytest.mark.parametrize(
    ("prefill_s", "token_s"),
    [(12, 5), pytest.param(60, 5, marks=[pytest.mark.slow, pytest.mark.timeout(200)])],
)
def test_a_silent_prefill_that_computes_and_a_token_every_5_s_both_live(
    tmp_path: Path, threads: ThreadPoolExecutor, prefill_s: int, token_s: int
) -> None:
    slow = (*engine_flags("in_child:InChild"), "--", "--token-s", str(token_s))
    long = (*engine_flags("long_prefill:LongPrefill"), "--", "--token-s", str(prefill_s))
    with Pool(tmp_path, *slow) as first, Pool(tmp_path, *long) as second:
        pools = [first.wait_ready(), second.wait_ready()]
        workers = [pool.workers()[0]["pid"] for pool in pools]
        tokens = threads.submit(first.infer, "abc", max_tokens=3)
        prefill = threads.submit(second.infer, "abc", max_tokens=1)
        assert (tokens.result(), prefill.result()) == (["abc"], ["a"])
        assert [pool.workers()[0]["pid"] for pool in pools] == workers


def test_a_worker_that_was_stopped_itself_does_not_blame_its_engine(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    """Its whole group, as by a shell's Ctrl-Z or a paused container, for longer than an engine
    may be silent."""
    flags = engine_flags("in_child:InChild")
    with Pool(tmp_path, *flags, "--", "--token-s", "1") as pool:
        pool.wait_ready()
        worker = pool.workers()[0]["pid"]
        answer = ask(pool, threads)
        os.killpg(worker, signal.SIGSTOP)
        time.sleep(12)  # what is tested is that this time does not count
        os.killpg(worker, signal.SIGCONT)
        assert answer.result(20) == (200, ["abc"])
        assert pool.workers()[0]["pid"] == worker
