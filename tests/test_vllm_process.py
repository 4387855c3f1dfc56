"""The engine's processes, with children of our own in vLLM's place."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from gpupool.engines.vllm_process import Family

SPAWN = multiprocessing.get_context("spawn")


def sleep_with_child(child_pid: object) -> None:
    child = SPAWN.Process(target=sleep)
    child.start()
    child_pid.value = child.pid  # type: ignore[attr-defined]
    time.sleep(600)


def sleep() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


def leave(code: int) -> None:
    os._exit(code)


@pytest.fixture
def start() -> Iterator[Callable[..., multiprocessing.process.BaseProcess]]:
    started = []

    def begin(target: Callable[..., None], *args: object) -> multiprocessing.process.BaseProcess:
        process = SPAWN.Process(target=target, args=args, name="EngineCore")
        process.start()
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.join()


def await_true(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_orphans_of_a_killed_engine_are_killed_too(start: Callable[..., object]) -> None:
    family, child_pid = Family(), SPAWN.Value("i", 0)
    core = start(sleep_with_child, child_pid)
    await_true(lambda: child_pid.value)
    family.remember()
    core.kill()  # type: ignore[attr-defined]
    core.join()  # type: ignore[attr-defined]
    assert psutil.pid_exists(child_pid.value)
    assert family.kill(5)
    assert not psutil.pid_exists(child_pid.value) or (
        psutil.Process(child_pid.value).status() == psutil.STATUS_ZOMBIE
    )


def test_other_children_of_the_worker_live_on(start: Callable[..., object]) -> None:
    stranger = start(sleep)
    family = Family()
    core = start(sleep)
    assert family.kill(5)
    assert [stranger.is_alive(), core.is_alive()] == [True, False]  # type: ignore[attr-defined]


def test_the_obituary_names_the_signal_and_the_likely_cause(start: Callable[..., object]) -> None:
    family = Family()
    core = start(sleep)
    family.remember()
    core.kill()  # type: ignore[attr-defined]
    core.join()  # type: ignore[attr-defined]
    assert "EngineCore was ended by SIGKILL; perhaps the machine ran out" in family.obituary()


def test_the_obituary_names_the_exit_code(start: Callable[..., object]) -> None:
    family = Family()
    core = start(leave, 7)
    family.remember()
    core.join()  # type: ignore[attr-defined]
    assert "EngineCore exited with code 7" in family.obituary()
