"""vLLM and llama.cpp stopped and killed, with their workers and with the whole pool.

A load takes vLLM half a minute, so each engine goes through one life of all these deaths, and
each test looks at one of them.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gpupool import procfs
from tests.pool import is_alive, wait_until
from tests.server.engines import engine_pool

pytestmark = [pytest.mark.server, pytest.mark.quiet, pytest.mark.model, pytest.mark.timeout(600)]

LONG = {"instances": "Once upon a time", "params": {"max_tokens": 400, "ignore_eos": True}}
STREAM = {
    "prompt": "Once upon a time",
    "max_tokens": 400,
    "temperature": 0,
    "ignore_eos": True,
    "stream": True,
}
NAMES = {"vllm": "VLLM::EngineCor", "llama_cpp": "gpupool-llama"}


@dataclass
class Death:
    """One death: what the client of the running request got, and how long each thing took."""

    answer: tuple[int, Any] | None = None
    gone_s: float = 0.0
    replaced_s: float = 0.0
    last_error: str = ""
    sockets: int = 0
    """Folders and files of sockets, when the new worker's engine answers."""
    stream: bytes = b""
    """What a stream of /v1 got that ran beside it."""
    shared: frozenset[str] = frozenset()
    """What is in /dev/shm then and was not when the pool's life began."""


class Life:
    """A pool of one worker, from death to death."""

    def __init__(self, engine: str, folder: Path) -> None:
        self._stack = ExitStack()
        self._engine = engine
        self._folder = folder
        self._temporary = folder / "tmp"
        self._temporary.mkdir()
        self.deaths: dict[str, Death] = {}

    def live(self) -> None:
        """Every death once; the pool that was killed while loading is started again."""
        before = shared_memory()
        with ExitStack() as self._stack:
            self._open()
            answer = self._strike("stopped engine", signal.SIGSTOP)
            self.deaths["stopped engine"].answer = answer.result(240)
            self.deaths["stopped engine"].sockets = self._count_sockets()
            with self._pool.send("/v1/completions", STREAM) as client:
                began = client.recv(1 << 16)
                self._strike("killed engine", signal.SIGKILL)
                self.deaths["killed engine"].stream = began + read_all(client)
            self._kill_worker_while_loading()
            self._await_loading()
            self._kill_all("all while loading")
            self._open()
            self._ask()
            self._kill_all("all while running")
            self.deaths["all while running"].shared = shared_memory() - before

    def _open(self) -> None:
        env = {"TMPDIR": str(self._temporary)}
        self._pool = self._stack.enter_context(
            engine_pool(self._engine, self._folder, env=env, is_exact=False)
        )
        self._threads = self._stack.enter_context(ThreadPoolExecutor(1))

    def _count_sockets(self) -> int:
        loose = [path for path in self._temporary.iterdir() if path.is_socket()]
        return len(loose) + len(list(self._temporary.glob("gpupool-*")))

    def _worker(self) -> int:
        return int(self._pool.workers()[0]["pid"])

    def _ask(self) -> Future[tuple[int, Any]]:
        """A request that has run for a moment when this returns."""
        answer = self._threads.submit(self._pool.post, "/infer", LONG)
        wait_until(lambda: self._pool.workers()[0]["inflight"] > 0, 20, "a request in flight")
        assert self._pool.infer("a", max_tokens=2)  # beside it, so that it has been computing
        return answer

    def _strike(self, name: str, number: int) -> Future[tuple[int, Any]]:
        """Signal the engine's process while it runs a request."""
        answer, worker = self._ask(), self._worker()
        group = [process.pid for process in procfs.group_members(worker)]
        os.kill(self._engine_process(worker), number)
        began, death = time.monotonic(), Death()
        wait_until(lambda: not any(map(is_alive, group)), 30, "the end of the old worker")
        death.gone_s = time.monotonic() - began
        wait_until(lambda: self._has_another(worker), 30, "a new worker")
        death.replaced_s = time.monotonic() - began
        death.last_error = self._pool.workers()[0]["last_error"]
        self.deaths[name] = death
        return answer

    def _engine_process(self, worker: int) -> int:
        members = procfs.group_members(worker)
        [pid] = [member.pid for member in members if member.name == NAMES[self._engine]]
        return pid

    def _has_another(self, worker: int) -> bool:
        try:
            return self._worker() not in (None, worker)
        except OSError:
            return False

    def _await_loading(self) -> None:
        """The engine's process is there and has the model still to load."""

        def loads() -> bool:
            worker = self._pool.workers()[0]
            names = {process.name for process in procfs.group_members(worker["pid"] or -1)}
            return worker["state"] == "loading" and NAMES[self._engine] in names

        wait_until(loads, 60, "an engine process that loads")

    def _await_ready(self) -> None:
        self._pool.wait_ready(deadline_s=240)

    def _kill_worker_while_loading(self) -> None:
        self._await_loading()
        worker = self._worker()
        group = [process.pid for process in procfs.group_members(worker)]
        os.kill(worker, signal.SIGKILL)
        self.deaths["worker while loading"] = Death(gone_s=seconds_until_gone(group))

    def _kill_all(self, name: str) -> None:
        worker = self._worker()
        group = [process.pid for process in procfs.group_members(worker)]
        os.kill(self._pool.process.pid, signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        self.deaths[name] = Death(gone_s=seconds_until_gone(group))
        self._pool.process.wait(5)


def read_all(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(1 << 16), b""))


def seconds_until_gone(pids: list[int]) -> float:
    began = time.monotonic()
    wait_until(lambda: not any(map(is_alive, pids)), 10, "the end of every process")
    return time.monotonic() - began


def shared_memory() -> frozenset[str]:
    """The blocks and semaphores that Python's multiprocessing made."""
    return frozenset(n for n in os.listdir("/dev/shm") if n.startswith(("psm_", "sem.mp-")))


# The life of vLLM takes three minutes.
ENGINES = [pytest.param("vllm", marks=pytest.mark.slow), "llama_cpp"]


@pytest.fixture(scope="module", params=ENGINES, name="deaths")
def _deaths(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Death]:
    engine = str(request.param)
    life = Life(engine, tmp_path_factory.mktemp(engine))
    life.live()
    print(life.deaths)
    return life.deaths


def test_a_stopped_engine_is_gone_and_its_worker_replaced_within_5_s(
    deaths: dict[str, Death],
) -> None:
    death = deaths["stopped engine"]
    assert death.gone_s < 5
    assert death.replaced_s < 5
    assert "is stopped (SIGSTOP) with 1 sequence in flight" in death.last_error


def test_a_request_in_an_engine_that_is_lost_is_answered_by_the_next(
    deaths: dict[str, Death],
) -> None:
    answer = deaths["stopped engine"].answer
    assert answer is not None
    assert answer[0] == 200
    assert len(answer[1][0]) > 400


def test_the_end_of_an_engines_process_is_told(deaths: dict[str, Death]) -> None:
    assert "SIGKILL" in deaths["killed engine"].last_error


def test_a_stream_of_a_killed_engine_ends_with_an_error(deaths: dict[str, Death]) -> None:
    told = deaths["killed engine"].stream
    assert told.startswith(b"HTTP/1.1 200")
    assert b'data: {"error"' in told
    assert b"[DONE]" not in told


def test_a_killed_engines_worker_is_replaced(deaths: dict[str, Death]) -> None:
    assert deaths["killed engine"].replaced_s < 5


def test_a_lost_engine_leaves_no_sockets(deaths: dict[str, Death]) -> None:
    assert deaths["stopped engine"].sockets == 1


def test_a_lost_engine_leaves_no_shared_memory(deaths: dict[str, Death]) -> None:
    assert not deaths["all while running"].shared


@pytest.mark.parametrize("name", ["worker while loading", "all while loading", "all while running"])
def test_nothing_is_left_of_a_killed_worker_after_a_second(
    deaths: dict[str, Death], name: str
) -> None:
    assert deaths[name].gone_s < 1
