"""SIGHUP and SIGTERM while real engines answer: every request is answered, once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from tests.pool import Pool, is_alive, wait_until
from tests.server.engines import engine_pool

pytestmark = [pytest.mark.server, pytest.mark.model, pytest.mark.timeout(600)]

PARAMS = {"max_tokens": 40, "temperature": 0, "ignore_eos": True}


@dataclass
class Life:
    """What the clients of one pool saw over its reload and its end."""

    asked: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    exit_code: int = -1
    stop_s: float = 0.0
    left: list[int] = field(default_factory=list)

    def ask(self, pool: Pool, name: str) -> None:
        self.asked.append(name)
        try:
            status, answer = pool.post("/infer", {"instances": name, "params": PARAMS}, 240)
        except OSError as error:
            self.faults.append(f"{name}: {error!r}")
            return
        if status == 200 and len(answer) == 1:
            self.answered.append(name)
        else:
            self.faults.append(f"{name}: {status} {answer}")


@pytest.fixture(
    scope="module",
    params=[pytest.param("vllm", marks=pytest.mark.slow), "llama_cpp"],
    name="life",
)
def _life(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Life:
    life = Life()
    folder = tmp_path_factory.mktemp(str(request.param))
    mortal = engine_pool(str(request.param), folder, is_exact=False)
    with mortal as pool, ThreadPoolExecutor(8) as threads:
        life.pids.append(pool.workers()[0]["pid"])
        with asking(life, pool, threads):
            wait_until(lambda: len(life.answered) >= 3, 60, "the first answers")
            pool.process.send_signal(signal.SIGHUP)
            wait_until(lambda: "reload: done" in pool.log(), 240, "the end of the reload")
            count = len(life.answered)
            wait_until(lambda: len(life.answered) >= count + 3, 120, "answers after it")
        life.pids.append(pool.workers()[0]["pid"])
        last = [threads.submit(life.ask, pool, f"last {number}") for number in range(6)]
        wait_until(lambda: pool.workers()[0]["inflight"] == 6, 20, "six requests")
        processes, began = pool.pids(), time.monotonic()
        life.exit_code = pool.stop()
        life.stop_s = time.monotonic() - began
        life.left = [pid for pid in processes if is_alive(pid)]
        for future in last:
            future.result()
    return life


@contextmanager
def asking(life: Life, pool: Pool, threads: ThreadPoolExecutor) -> Iterator[None]:
    """Three clients that ask one request after the other, as long as it lasts."""
    stop = threading.Event()

    def ask_on(number: int) -> None:
        for name in names(number):
            if stop.is_set():
                return
            life.ask(pool, name)

    clients = [threads.submit(ask_on, number) for number in range(3)]
    try:
        yield
    finally:
        stop.set()
        for client in clients:
            client.result()


def names(client: int) -> Iterator[str]:
    return (f"client {client} asks {count}" for count in range(100_000))


def test_every_request_is_answered_once(life: Life) -> None:
    assert life.faults == []
    assert sorted(life.answered) == sorted(life.asked)


def test_a_reload_brings_a_new_worker(life: Life) -> None:
    assert life.pids[0] != life.pids[1]


def test_the_pool_ends_in_order_and_leaves_nothing(life: Life) -> None:
    assert life.exit_code == 0
    assert life.stop_s < 30
    assert life.left == []
