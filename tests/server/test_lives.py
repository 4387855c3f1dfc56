"""The life of each slice in a running pool: loads that fail, workers that die, the pool's end."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machine import fake_machine
from tests.pool import Pool, is_alive, wait_until

pytestmark = pytest.mark.server

MODEL = ("--model_name", "M", "--infer_type")
SCRIPTED = (*MODEL, "tests.engines.scripted:ScriptedEngine")
HAS_CHILD = (*MODEL, "tests.engines.has_child:HasChild")


def states(pool: Pool) -> list[str]:
    return [worker["state"] for worker in pool.workers()]


def test_a_slice_that_fails_backs_off_while_the_other_serves(tmp_path: Path) -> None:
    engine = (*MODEL, "tests.engines.fails_to_load:FailsToLoad")
    permit = tmp_path / "may-load"
    with (
        fake_machine(tmp_path, gpus=2) as machine,
        Pool(tmp_path, *engine, "--", str(permit), "1", env=machine.env()) as pool,
    ):
        pool.wait_ready()
        wait_until(lambda: "next try in 5 s" in pool.log(), 20, "the second failure")
        serving, failing = pool.workers()
        assert serving["state"] == "ready"
        assert (failing["state"], failing["pid"]) == ("failed", None)
        assert failing["phase"].startswith("next try in ")
        assert "the disk is on fire" in failing["last_error"]
        permit.touch()
        pool.wait_ready(workers=2, deadline_s=20)
        assert pool.workers()[0]["pid"] == serving["pid"]


def test_no_way_to_die_in_a_load_ends_the_service(tmp_path: Path) -> None:
    ways = ("3", "4", "0", "SIGSEGV", "SIGKILL")
    engine = (*MODEL, "tests.engines.exits_during_load:ExitsDuringLoad")
    permit = tmp_path / "may-load"
    with (
        fake_machine(tmp_path, gpus=len(ways)) as machine,
        Pool(tmp_path, *engine, "--", str(permit), *ways, env=machine.env()) as pool,
    ):
        for slot in range(len(ways)):
            line = f"worker {slot} failed 1 time(s) in a row; next try in 1 s"
            wait_until(lambda line=line: line in pool.log(), 20, line)
        permit.touch()
        pool.wait_ready(workers=len(ways), deadline_s=30)
        log = pool.log()
        for how in ("exited with code 3 ", "killed by SIGSEGV ", "perhaps there was not enough"):
            assert how in log
        assert pool.process.poll() is None


def test_while_every_slice_backs_off_probes_are_answered_and_requests_wait(
    tmp_path: Path,
) -> None:
    engine = (*MODEL, "tests.engines.fails_to_load:FailsToLoad")
    permit = tmp_path / "may-load"
    with (
        fake_machine(tmp_path, gpus=2) as machine,
        Pool(tmp_path, *engine, "--", str(permit), env=machine.env()) as pool,
        concurrent.futures.ThreadPoolExecutor(1) as thread,
    ):
        wait_until(lambda: pool.log().count("next try in 5 s") == 2, 20, "the second failures")
        began = time.monotonic()
        assert pool.get("/readyz")[0] == 503
        assert time.monotonic() - began < 3
        wait_until(lambda: states(pool) == ["failed", "failed"], 3, "two slices in back-off")
        answer = thread.submit(pool.infer, "abc", max_tokens=3)
        wait_until(
            lambda: any(worker["waiting"] for worker in pool.workers()), 5, "a waiting request"
        )
        permit.touch()
        assert answer.result() == ["abc"]


def test_when_no_slice_can_ever_work_the_service_ends_with_the_reason(tmp_path: Path) -> None:
    engine = (*MODEL, "tests.engines.refuses_to_load:RefusesToLoad")
    with (
        fake_machine(tmp_path, gpus=2) as machine,
        Pool(tmp_path, *engine, env=machine.env()) as pool,
    ):
        wait_until(pool.pids, 5, "processes")
        assert pool.process.wait(30) == 1
        assert (
            pool.log()
            .strip()
            .splitlines()[-1]
            .endswith(
                "no worker can ever be ready: ConfigError: --model_name 'M' has no weights; give a "
                "folder that does"
            )
        )


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_four_failures_of_every_slice_end_the_service(tmp_path: Path) -> None:
    engine = (*MODEL, "tests.engines.fails_to_load:FailsToLoad")
    with Pool(tmp_path, *engine, "--", str(tmp_path / "may-load")) as pool:
        assert pool.process.wait(90) == 1
        assert pool.log().strip().endswith("RuntimeError: the disk is on fire")


def test_a_load_that_hangs_is_ended_and_tried_again(tmp_path: Path) -> None:
    engine = (*MODEL, "tests.engines.hangs_in_load:HangsInLoad", "--load_timeout_s", "1")
    permit = tmp_path / "may-load"
    with Pool(tmp_path, *engine, "--", str(permit)) as pool:
        wait_until(lambda: "failed 1 time(s) in a row" in pool.log(), 20, "the failure")
        assert "longer than --load_timeout_s (1 s), phase 'waiting for the other" in pool.log()
        permit.touch()
        pool.wait_ready(deadline_s=20)


@pytest.mark.quiet
def test_a_load_that_holds_the_interpreter_and_reports_is_left_alone(tmp_path: Path) -> None:
    engine = (*MODEL, "tests.engines.hogs_the_interpreter:HogsTheInterpreter")
    with Pool(tmp_path, *engine, "--heartbeat_timeout_s", "8", "--", "11") as pool:
        pool.wait_ready(deadline_s=30)
        assert "TIMEOUT" not in pool.log()


def test_a_worker_that_an_operator_ends_is_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    with (
        Pool(tmp_path, *SCRIPTED, "--", "--token-s", "0.05") as pool,
        concurrent.futures.ThreadPoolExecutor(4) as threads,
    ):
        pid = pool.wait_ready().workers()[0]["pid"]
        running = [threads.submit(pool.infer, "ab", max_tokens=40) for _ in range(4)]
        wait_until(lambda: pool.workers()[0]["inflight"] >= 4, 10, "four running requests")
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: pool.workers()[0]["state"] == "draining", 5, "the drain")
        assert pool.infer("ab", max_tokens=2) == ["ab"]  # waits for the next worker
        assert [answer.result() for answer in running] == [["ab" * 20]] * 4
        assert "failed" not in pool.log()
        assert "died" not in pool.log()


def test_a_worker_that_dies_again_and_again_backs_off(tmp_path: Path) -> None:
    with Pool(tmp_path, *SCRIPTED) as pool:
        for num_deaths in (1, 2, 3):
            pool.wait_ready()
            os.kill(ready_pid(pool), signal.SIGKILL)
            wait_until(lambda n=num_deaths: pool.log().count(" died; ") == n, 10, "its end")
        assert [pool.log().count(f"died; next in {delay_s} s") for delay_s in (0, 1)] == [2, 1]
        pool.wait_ready()


def ready_pid(pool: Pool) -> int:
    return next(int(w["pid"]) for w in pool.workers() if w["state"] == "ready")


def test_a_worker_that_does_not_end_in_time_is_killed(tmp_path: Path) -> None:
    engine = (*MODEL, "tests.engines.never_dies:NeverDies", "--graceful_timeout_s", "1")
    with Pool(tmp_path, *engine) as pool:
        pid = pool.wait_ready().workers()[0]["pid"]
        pool.process.send_signal(signal.SIGHUP)
        wait_until(lambda: not is_alive(pid), 15, "the end of the old worker")
        pool.wait_ready()


@pytest.fixture(scope="module", name="steady")
def _steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with Pool(tmp_path_factory.mktemp("steady"), *SCRIPTED) as pool:
        yield pool.wait_ready()


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (signal.SIGTTIN, "one worker per slice"),
        (signal.SIGTTOU, "one worker per slice"),
        (signal.SIGUSR2, "send SIGHUP"),
        (signal.SIGWINCH, "send SIGTERM"),
    ],
)
def test_a_signal_that_means_nothing_here_only_says_so(
    steady: Pool, number: int, hint: str
) -> None:
    pids = steady.pids()
    seen = len(steady.log())
    steady.process.send_signal(number)
    wait_until(lambda: hint in steady.log()[seen:], 5, "the line")
    assert steady.infer("abc", max_tokens=3) == ["abc"]
    assert steady.pids() == pids


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
def test_a_signal_for_the_master_does_not_end_a_worker(steady: Pool, number: int) -> None:
    before = steady.pids()
    os.kill(ready_pid(steady), number)
    assert steady.infer("abc", max_tokens=3) == ["abc"]
    assert steady.pids() == before


def test_log_files_are_opened_again(tmp_path: Path) -> None:
    log = tmp_path / "pool.txt"
    env = {"GUNICORN_CMD_ARGS": f"--error-logfile {log}"}
    with Pool(tmp_path, *SCRIPTED, env=env) as pool:
        pool.wait_ready()
        log.rename(tmp_path / "old.txt")
        pool.process.send_signal(signal.SIGUSR1)
        wait_until(log.exists, 5, "the new file")
        os.kill(ready_pid(pool), signal.SIGKILL)
        wait_until(lambda: "died" in log.read_text(), 10, "a line in it")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_log_files_that_cannot_be_opened_again_end_nothing(tmp_path: Path, number: int) -> None:
    folder, moved = tmp_path / "logs", tmp_path / "moved"
    folder.mkdir()
    env = {"GUNICORN_CMD_ARGS": f"--error-logfile {folder}/pool.txt"}
    with Pool(tmp_path, *SCRIPTED, env=env) as pool:
        pool.wait_ready()
        folder.rename(moved)
        pool.process.send_signal(number)
        line = "the log files stay open as they are"
        wait_until(lambda: line in (moved / "pool.txt").read_text(), 5, "the line")
        pool.process.send_signal(signal.SIGWINCH)
        hint = "SIGWINCH does nothing"
        wait_until(lambda: hint in (moved / "pool.txt").read_text(), 5, "a line after it")
        assert pool.infer("abc", max_tokens=3) == ["abc"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_after_the_end_nothing_lives_and_a_restart_works_at_once(
    tmp_path: Path, number: int
) -> None:
    with (
        fake_machine(tmp_path, gpus=2) as machine,
        Pool(tmp_path, *HAS_CHILD, env=machine.env()) as pool,
    ):
        pool.wait_ready(workers=2)
        pids = pool.pids()
        assert len(pids) == 8  # master, GPU watch; two workers with a child and a guardian each
        began = time.monotonic()
        assert pool.stop(number) == 0
        assert time.monotonic() - began < 5
        wait_until(lambda: not any(map(is_alive, pids)), 0.5, "the end of every process")
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", pool.port))
        with Pool(tmp_path, *HAS_CHILD, env=machine.env()) as restarted:
            restarted.wait_ready(workers=2, deadline_s=10)


def test_sigterm_lets_requests_finish(tmp_path: Path) -> None:
    with (
        Pool(tmp_path, *SCRIPTED, "--", "--token-s", "0.05") as pool,
        concurrent.futures.ThreadPoolExecutor(4) as threads,
    ):
        pool.wait_ready()
        running = [threads.submit(pool.infer, "ab", max_tokens=40) for _ in range(4)]
        wait_until(lambda: pool.workers()[0]["inflight"] >= 4, 10, "four running requests")
        assert pool.stop() == 0
        assert [answer.result() for answer in running] == [["ab" * 20]] * 4


def test_a_worker_that_was_just_forked_hears_that_the_pool_ends(tmp_path: Path) -> None:
    with fake_machine(tmp_path, gpus=4) as machine:
        for _ in range(2):
            with Pool(tmp_path, *SCRIPTED, env=machine.env()) as pool:
                wait_until(lambda pool=pool: len(pool.pids()) > 4, 20, "four workers' forks")
                began = time.monotonic()
                assert pool.stop() == 0
                assert time.monotonic() - began < 20  # the grace period is 30
