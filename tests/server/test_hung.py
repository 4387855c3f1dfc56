"""Engines that hang are found and replaced; slow ones live.

Each of the cases that take their time has a pool of its own, and they all run side by side.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.machine import fake_machine
from tests.pool import Pool, is_alive, wait_until

pytestmark = [pytest.mark.server, pytest.mark.timeout(120)]

BODY = {"instances": "abc", "params": {"max_tokens": 3}}


class Case:
    """One pool with one worker, and one request to it."""

    def __init__(self, pool: Pool, threads: ThreadPoolExecutor) -> None:
        self.pool = pool
        self.threads = threads
        self.worker = int(pool.workers()[0]["pid"])

    def ask(self, prompt: str = "abc") -> Future[tuple[int, Any]]:
        """A request that the engine has when this returns."""
        self.began = time.monotonic()
        answer = self.threads.submit(self.pool.post, "/infer", BODY | {"instances": prompt})
        wait_until(lambda: self.pool.workers()[0]["inflight"] > 0, 10, "a request in flight")
        return answer

    def end(self) -> End:
        """Wait for the next worker, which will run the request again. The log is looked at first:
        answers about itself are work of the worker, and its engine may be in the same process."""
        wait_until(lambda: "leaves:" in self.pool.log(), 30, "the end of the worker")
        wait_until(self.is_replaced, 30, "a new worker")
        seconds = time.monotonic() - self.began
        return End(seconds, str(self.pool.workers()[0]["last_error"]))

    def is_replaced(self) -> bool:
        try:
            return self.pool.workers()[0]["pid"] not in (None, self.worker)
        except OSError:
            return False

    def engine_child(self) -> psutil.Process:
        """The engine's process; the guardian is in a group of its own."""
        children = psutil.Process(self.worker).children()
        [child] = [child for child in children if os.getpgid(child.pid) == self.worker]
        return child


@dataclass
class End:
    """When a new worker was there, and why."""

    seconds: float
    last_error: str


@contextmanager
def open_case(folder: Path, engine: str, *flags: str, **env: str) -> Iterator[Case]:
    folder.mkdir()
    own = ("--model_name", "M", "--infer_type", f"tests.engines.{engine}")
    own += ("--graceful_timeout_s", "2", *flags)
    with ThreadPoolExecutor(1) as threads, Pool(folder, *own, env=env) as pool:
        yield Case(pool.wait_ready(), threads)


def sleeps_in_a_child(folder: Path) -> End:
    with open_case(folder, "in_child:InChild") as case:
        case.ask("wait")
        return case.end()


def sleeps_in_the_worker(folder: Path) -> End:
    with open_case(folder, "sleeps_for_ever:SleepsForEver") as case:
        case.ask()
        return case.end()


def sleeps_under_probes(folder: Path) -> End:
    """The worker takes far more CPU time than what counts as computing."""
    with open_case(folder, "in_child:InChild") as case:
        case.ask("wait")
        while "leaves:" not in case.pool.log() and time.monotonic() < case.began + 30:
            case.pool.get("/livez")
        end = case.end()
        spent = psutil.Process(case.pool.process.pid).cpu_times()
        assert spent.children_user + spent.children_system > 2
        return end


def ends_no_request(folder: Path) -> End:
    with open_case(folder, "ignores_die:IgnoresDie") as case:
        case.ask()
        return case.end()


def computes_without_a_step(folder: Path) -> End:
    flags = ("--stall_timeout_s", "3", "--", "--token-s", "20")
    with open_case(folder, "long_prefill:LongPrefill", *flags) as case:
        case.ask()
        return case.end()


def is_stopped_while_idle(folder: Path) -> bool:
    with open_case(folder, "in_child:InChild") as case:
        case.engine_child().suspend()
        time.sleep(4)  # nothing shall happen, so there is nothing to wait for
        case.engine_child().resume()
        return case.pool.infer("abc", max_tokens=3) == ["abc"] and not case.is_replaced()


def stops_with_its_worker(folder: Path) -> bool:
    with open_case(folder, "in_child:InChild", "--", "--token-s", "1") as case:
        answer = case.ask()
        os.killpg(case.worker, signal.SIGSTOP)
        time.sleep(12)  # longer than an engine may be silent: this time must not count
        os.killpg(case.worker, signal.SIGCONT)
        return answer.result(30) == (200, ["abc"]) and not case.is_replaced()


def gives_a_token_every_5_s(folder: Path) -> bool:
    with open_case(folder, "in_child:InChild", "--", "--token-s", "5") as case:
        return case.ask().result(60) == (200, ["abc"]) and not case.is_replaced()


def computes_for_12_s(folder: Path) -> bool:
    return lives_through_a_prefill(folder, 12)


def lives_through_a_prefill(folder: Path, seconds: int) -> bool:
    with open_case(folder, "long_prefill:LongPrefill", "--", "--token-s", str(seconds)) as case:
        found = case.pool.infer("abc", max_tokens=1)
        return found == ["a"] and not case.is_replaced()


def computes_in_a_new_process(folder: Path) -> bool:
    """As a compiler that is run for a kernel on its first use."""
    with open_case(folder, "in_child:InChild") as case:
        found = case.pool.infer("compile", max_tokens=1)
        return found == ["c"] and not case.is_replaced()


def waits_for_its_gpu(folder: Path) -> bool:
    """A step on a GPU, for which vLLM sleeps."""
    with fake_machine(folder.with_name("machine"), gpus=1) as machine:
        flags = ("--", "--token-s", "13")
        with open_case(folder, "in_child:InChild", *flags, **machine.env()) as case:
            machine.set_gpu(0, utilization=100)
            found = case.pool.infer("abc", max_tokens=1)
            return found == ["a"] and not case.is_replaced()


CASES: tuple[Callable[[Path], Any], ...] = (
    sleeps_in_a_child,
    sleeps_in_the_worker,
    sleeps_under_probes,
    ends_no_request,
    computes_without_a_step,
    is_stopped_while_idle,
    stops_with_its_worker,
    gives_a_token_every_5_s,
    computes_for_12_s,
    computes_in_a_new_process,
    waits_for_its_gpu,
)


@pytest.fixture(scope="module", name="ends")
def _ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Any]]]:
    folder = tmp_path_factory.mktemp("hung")
    (folder / "machine").mkdir()
    with ThreadPoolExecutor(len(CASES)) as threads:
        yield {case.__name__: threads.submit(case, folder / case.__name__) for case in CASES}


Ends = dict[str, Future[Any]]


@pytest.mark.parametrize("name", ["sleeps_in_a_child", "sleeps_in_the_worker"])
def test_an_engine_that_neither_computes_nor_progresses_is_replaced_within_15_s(
    ends: Ends, name: str
) -> None:
    end = ends[name].result()
    assert 10 < end.seconds < 15
    assert "neither computed nor progressed" in end.last_error


def test_requests_that_the_worker_reads_do_not_pass_for_its_engines_work(ends: Ends) -> None:
    assert 10 < ends["sleeps_under_probes"].result().seconds < 15


def test_an_engine_that_does_not_even_end_its_requests_is_replaced(ends: Ends) -> None:
    end = ends["ends_no_request"].result()
    assert end.seconds < 15


def test_an_engine_that_completes_no_step_is_replaced_after_the_stall_timeout(ends: Ends) -> None:
    end = ends["computes_without_a_step"].result()
    assert end.seconds < 9
    assert "made no progress for 3 s (--stall_timeout_s)" in end.last_error


LIVING = {
    "a silent prefill that computes": "computes_for_12_s",
    "a process of its own that computes": "computes_in_a_new_process",
    "a silent step on a GPU": "waits_for_its_gpu",
    "a token every 5 s": "gives_a_token_every_5_s",
    "stopped without work": "is_stopped_while_idle",
    "stopped together with its worker": "stops_with_its_worker",
}


@pytest.mark.parametrize("name", LIVING.values(), ids=LIVING.keys())
def test_an_engine_lives_that_is(ends: Ends, name: str) -> None:
    assert ends[name].result()


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_silent_prefill_of_60_s_lives(tmp_path: Path) -> None:
    assert lives_through_a_prefill(tmp_path / "long", 60)


def test_a_stopped_engine_process_is_found_and_replaced_within_5_s(tmp_path: Path) -> None:
    with open_case(tmp_path / "stopped", "in_child:InChild", "--", "--token-s", "1") as case:
        child = case.engine_child()
        name = Path(f"/proc/{child.pid}/comm").read_text().strip()
        answer = case.ask()
        child.suspend()
        case.began = time.monotonic()
        end = case.end()
        assert not is_alive(child.pid)
        assert end.seconds < 5
        assert answer.result(30) == (200, ["abc"])  # the next worker's
        reason = f"engine process {child.pid} ({name}) is stopped (SIGSTOP) with 1 sequence"
        assert reason in end.last_error
        case.pool.wait_ready()
        assert case.pool.infer("abc", max_tokens=1) == ["a"]
