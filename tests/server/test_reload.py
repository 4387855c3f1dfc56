"""SIGHUP: new settings for a pool that serves, one worker at a time."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.demo_model import gguf_path
from tests.machine import fake_machine
from tests.pool import Pool, is_alive, wait_until

pytestmark = pytest.mark.server

SCRIPTED = "tests.engines.scripted:ScriptedEngine"
DONE = "reload: done"


def write(path: Path, **settings: Any) -> None:
    """A configuration file, in place in one piece."""
    new = path.with_suffix(".new")
    new.write_text(yaml.safe_dump({"model_name": "A", "infer_type": SCRIPTED} | settings))
    new.replace(path)


def hang_up(pool: Pool, line: str, deadline_s: float = 40.0) -> str:
    """Send a SIGHUP and wait for a line; what was logged from then on."""
    seen = len(pool.log())
    pool.process.send_signal(signal.SIGHUP)
    wait_until(lambda: line in pool.log()[seen:], deadline_s, line)
    return pool.log()[seen:]


def pids(pool: Pool) -> set[int]:
    return {int(worker["pid"]) for worker in pool.workers()}


class Load:
    """Clients that ask on, each request on a connection of its own, until the block is left."""

    def __init__(self, pool: Pool, num_clients: int) -> None:
        self._pool = pool
        self._stop = threading.Event()
        self._threads = concurrent.futures.ThreadPoolExecutor(num_clients + 1)
        self._clients = [self._threads.submit(self._ask, i) for i in range(num_clients)]
        self._watcher = self._threads.submit(self._watch)

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._threads.shutdown()

    def wrong_answers(self) -> list[Any]:
        """Everything that was not the one right answer; call it after the block."""
        return [found for client in self._clients for found in client.result()]

    def fewest_ready(self) -> int:
        """How many workers were ready at the worst moment."""
        return int(self._watcher.result())

    def _ask(self, client: int) -> list[Any]:
        wrong = []
        for count in itertools.count():
            text = f"{client}-{count} "
            body = {"instances": text, "params": {"max_tokens": len(text)}}
            try:
                answer = self._pool.post("/infer", body)
            except OSError as error:
                answer = (0, error)
            if answer != (200, [text]):
                wrong.append(answer)
            if self._stop.is_set():
                return wrong
        raise AssertionError("unreachable")

    def _watch(self) -> int:
        fewest = 1000
        while not self._stop.is_set():
            fewest = min(fewest, int(self._pool.get("/readyz")[1]["ready"]))
        return fewest


def test_a_reload_under_load_loses_nothing_and_misses_one_worker_at_most(tmp_path: Path) -> None:
    config = tmp_path / "pool.yaml"
    write(config, engine_args=["--token-s", "0.01", "--load-s", "0.5"])
    with (
        fake_machine(tmp_path, gpus=3) as machine,
        Pool(tmp_path, "--config", str(config), env=machine.env()) as pool,
    ):
        pool.wait_ready(workers=3)
        before = pids(pool)
        write(config, model_name="B", engine_args=["--token-s", "0.01", "--load-s", "0.5"])
        with Load(pool, 8) as load:
            hang_up(pool, DONE)
        assert load.wrong_answers() == []
        assert load.fewest_ready() == 2
        assert not pids(pool) & before
        assert pool.get("/pool")[1]["model"] == "B"
        assert len({uuid for worker in pool.workers() for uuid in worker["gpus"]}) == 3


def test_with_one_worker_requests_wait_and_probes_answer(tmp_path: Path) -> None:
    config = tmp_path / "pool.yaml"
    write(config, engine_args=["--load-s", "2"])
    with Pool(tmp_path, "--config", str(config)) as pool:
        pool.wait_ready()
        with Load(pool, 4) as load, concurrent.futures.ThreadPoolExecutor(1) as thread:
            slowest = thread.submit(slowest_probe, pool, lambda: DONE in pool.log())
            hang_up(pool, DONE)
        assert load.wrong_answers() == []
        assert slowest.result() < 2.5
        assert load.fewest_ready() == 0


def slowest_probe(pool: Pool, is_over: Callable[[], bool]) -> float:
    """How long /livez took at the most."""
    slowest = 0.0
    while not is_over():
        began = time.monotonic()
        assert pool.get("/livez")[0] == 200
        slowest = max(slowest, time.monotonic() - began)
    return slowest


def test_a_reload_on_one_slice_never_loads_two_models_there(tmp_path: Path) -> None:
    config = tmp_path / "pool.yaml"
    write(config, engine_args=["--load-s", "0.5", "--token-s", "0.05"])
    with (
        Pool(tmp_path, "--config", str(config)) as pool,
        concurrent.futures.ThreadPoolExecutor(1) as thread,
    ):
        old = pool.wait_ready().workers()[0]["pid"]
        answer = thread.submit(pool.infer, "a", max_tokens=60)
        wait_until(lambda: pool.workers()[0]["inflight"] >= 1, 10, "a running request")
        pool.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(pool.workers()) == 2, 10, "a successor")
        while is_alive(old):
            states = [worker["state"] for worker in pool.workers()]
            assert "loading" not in states or not is_alive(old)
        assert answer.result() == ["a" * 60]
        wait_until(lambda: DONE in pool.log(), 20, "the end of the reload")


@pytest.fixture(scope="module", name="running")
def _running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pool, Path]]:
    folder = tmp_path_factory.mktemp("running")
    config = folder / "pool.yaml"
    settings = {"infer_type": "tests.engines.picky:Picky", "engine_args": ["--slots", "3"]}
    write(config, **settings)
    with Pool(folder, "--config", str(config)) as pool:
        yield pool.wait_ready(), config


REFUSED = {
    "not YAML": ("model_name: [", "is not valid YAML"),
    "an unknown key": ("modle_name: A", "'modle_name' in the configuration file is not a setting"),
    "an engine argument": (
        "{model_name: A, infer_type: 'tests.engines.picky:Picky', engine_args: [--context, '9']}",
        "give --slots",
    ),
    "a model that is none": (
        "{model_name: /nowhere, infer_type: llama_cpp}",
        "/nowhere",
    ),
    "another number of workers": (
        "{model_name: A, infer_type: 'tests.engines.picky:Picky', workers: 2}",
        "--workers (GPUPOOL_WORKERS) is 2, but the running pool has None and keeps it",
    ),
}


@pytest.mark.parametrize(("text", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_settings_that_are_refused_leave_the_pool_as_it_is(
    running: tuple[Pool, Path], text: str, reason: str
) -> None:
    pool, config = running
    before = pids(pool)
    config.write_text(text)
    log = hang_up(pool, "the reload is refused", 60)
    lines = [line for line in log.splitlines() if "[ERROR]" in line or "Error" in line]
    assert len(lines) == 1, lines
    assert reason in lines[0]
    assert pool.infer("abc", max_tokens=3) == ["abc"]
    assert pids(pool) == before


def test_a_removed_file_leaves_the_pool_as_it_is(running: tuple[Pool, Path]) -> None:
    pool, config = running
    config.unlink()
    assert "no such file" in hang_up(pool, "the reload is refused")
    assert pool.infer("abc", max_tokens=3) == ["abc"]


def test_a_successor_that_fails_is_followed_by_one_with_the_settings_before(
    tmp_path: Path,
) -> None:
    config, permit = tmp_path / "pool.yaml", tmp_path / "may-load"
    permit.touch()
    engine = {"infer_type": "tests.engines.fails_to_load:FailsToLoad"}
    write(config, **engine, engine_args=[str(permit)])
    with (
        fake_machine(tmp_path, gpus=2) as machine,
        Pool(tmp_path, "--config", str(config), env=machine.env()) as pool,
    ):
        before = pids(pool.wait_ready(workers=2))
        write(config, **engine, engine_args=[str(tmp_path / "nothing")], model_name="B")
        with Load(pool, 4) as load:
            log = hang_up(pool, "the reload stops")
            pool.wait_ready(workers=2)
        assert load.wrong_answers() == []
        assert load.fewest_ready() == 1
        assert "the disk is on fire" in log
        assert len(pids(pool) & before) == 1
        assert {pool.get("/pool")[1]["model"] for _ in range(20)} == {"A"}


def test_a_reload_that_stops_leaves_no_successor_behind(tmp_path: Path) -> None:
    """One worker has the new settings, a second successor waits for its predecessor's drain.
    When the first dies early, the second must not go on to load the same."""
    config = tmp_path / "pool.yaml"
    arguments = ["--token-s", "0.05", "--slots", "16"]
    write(config, engine_args=arguments)
    with (
        fake_machine(tmp_path, gpus=2) as machine,
        Pool(tmp_path, "--config", str(config), env=machine.env()) as pool,
        concurrent.futures.ThreadPoolExecutor(8) as threads,
    ):
        pool.wait_ready(workers=2)
        write(config, model_name="B", engine_args=arguments)
        hang_up(pool, "is replaced")
        # Nobody else is ready now, so these keep the second one busy.
        running = [threads.submit(pool.infer, "a", max_tokens=120) for _ in range(8)]
        wait_until(lambda: pool.log().count("is replaced") == 2, 20, "the second successor")
        os.kill(next(w["pid"] for w in pool.workers() if w["state"] == "ready"), signal.SIGKILL)
        wait_until(lambda: "the reload stops" in pool.log(), 10, "the end of the reload")
        for answer in running:
            answer.exception()  # some may have been the dead worker's
        wait_until(
            lambda: [w["state"] for w in pool.workers()] == ["ready"] * 2, 20, "two ready workers"
        )
        assert {pool.get("/pool")[1]["model"] for _ in range(20)} == {"A"}


def test_later_workers_do_not_read_the_file_again(tmp_path: Path) -> None:
    config = tmp_path / "pool.yaml"
    write(config, engine_args=["--token-s", "0.05"])
    with (
        Pool(tmp_path, "--config", str(config)) as pool,
        concurrent.futures.ThreadPoolExecutor(1) as thread,
    ):
        pid = pool.wait_ready().workers()[0]["pid"]
        answer = thread.submit(pool.infer, "a", max_tokens=60)
        wait_until(lambda: pool.workers()[0]["inflight"] >= 1, 10, "a running request")
        config.write_text("model_name: [")
        os.kill(pid, signal.SIGTERM)
        # While the first one drains, its successor answers.
        wait_until(lambda: len(pool.workers()) == 2, 10, "two workers")
        assert pool.get("/pool")[1]["model"] == "A"
        assert answer.result() == ["a" * 60]
        pool.wait_ready()


def test_hangups_during_a_reload_are_one_more_reload(tmp_path: Path) -> None:
    config = tmp_path / "pool.yaml"
    write(config, engine_args=["--load-s", "1"])
    with Pool(tmp_path, "--config", str(config)) as pool:
        pool.wait_ready()
        hang_up(pool, "reload: one worker at a time")
        write(config, engine_args=["--load-s", "1"], model_name="B")
        for _ in range(3):
            hang_up(pool, "another reload follows")
        wait_until(lambda: pool.log().count(DONE) == 2, 30, "the end of two reloads")
        assert pool.get("/pool")[1]["model"] == "B"
        assert pool.log().count("reload: checking the new settings") == 2


def test_a_pool_that_never_worked_takes_new_settings_at_once(tmp_path: Path) -> None:
    config, permit = tmp_path / "pool.yaml", tmp_path / "may-load"
    permit.touch()
    engine = {"infer_type": "tests.engines.fails_to_load:FailsToLoad"}
    write(config, **engine, engine_args=[str(tmp_path / "nothing")])
    with Pool(tmp_path, "--config", str(config)) as pool:
        wait_until(lambda: "failed 2 time(s) in a row" in pool.log(), 20, "the second failure")
        write(config, **engine, engine_args=[str(permit)])
        pool.process.send_signal(signal.SIGHUP)
        pool.wait_ready(deadline_s=10)


@pytest.mark.model
def test_a_reload_can_change_the_engine(tmp_path: Path) -> None:
    config = tmp_path / "pool.yaml"
    write(config)
    with Pool(tmp_path, "--config", str(config)) as pool:
        pool.wait_ready()
        write(config, model_name=str(gguf_path()), infer_type="llama_cpp")
        hang_up(pool, DONE)
        assert pool.get("/pool")[1]["infer_type"] == "llama_cpp"
        assert "Paris" in pool.infer("The capital of France is", max_tokens=8, temperature=0)[0]


def test_sigterm_during_a_reload_ends_everything(tmp_path: Path) -> None:
    config = tmp_path / "pool.yaml"
    write(config, engine_args=["--load-s", "30"])
    with (
        fake_machine(tmp_path, gpus=2) as machine,
        Pool(tmp_path, "--config", str(config), env=machine.env()) as pool,
    ):
        wait_until(lambda: "phase='counting sheep'" in pool.log(), 20, "a load")
        hang_up(pool, "is replaced")
        everything = pool.pids()
        began = time.monotonic()
        assert pool.stop() == 0
        assert time.monotonic() - began < 8
        wait_until(lambda: not any(map(is_alive, everything)), 1, "the end of every process")
