"""SIGKILL at any moment: nothing is left behind, and the pool goes on."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from gpupool import procfs
from gpupool.gpus import Gpu
from gpupool.lockdir import Busy, lock_modes, open_lock_dir, try_lock
from tests.machine import Machine, fake_machine, uuid_of
from tests.pool import Pool, is_alive, wait_until

pytestmark = [pytest.mark.server, pytest.mark.quiet, pytest.mark.timeout(120)]

HAS_CHILD = ("--model_name", "M", "--infer_type", "tests.engines.has_child:HasChild")
SLOW = ("--", "--load-s", "1", "--token-s", "0.05")
LONG = {"instances": "ab", "params": {"max_tokens": 40}}
GONE_S = 1.0


def await_moment(pool: Pool, moment: str, slot: int = 0) -> None:
    """Until a worker loads with its engine's child there, is ready, or runs requests."""

    def has_come() -> bool:
        try:
            worker = pool.workers()[slot]
        except OSError:
            return False
        if moment == "loading":
            group = procfs.group_members(worker["pid"]) if worker["pid"] else []
            return worker["state"] == "loading" and len(group) == 2
        is_busy = worker["inflight"] > 0
        return worker["state"] == "ready" and (is_busy or moment == "idle")

    wait_until(has_come, 60, f"a worker that is {moment}")


def seconds_until_gone(pids: Iterable[int]) -> float:
    """From now to the end of the last of these processes."""
    began, left = time.monotonic(), list(pids)
    wait_until(lambda: not any(map(is_alive, left)), 10, "the end of every process")
    return time.monotonic() - began


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def group(pool: Pool, slot: int) -> list[int]:
    """A worker, which comes first, and its engine's processes."""
    worker = pool.workers()[slot]["pid"]
    members = [process.pid for process in procfs.group_members(worker)]
    return sorted(members, key=lambda pid: pid != worker)


def is_lease_free(machine: Machine, index: int) -> bool:
    gpu = Gpu(index, uuid_of(index), "", 1, 1)
    try:
        try_lock(lock_modes(open_lock_dir(machine.lock_dir), [gpu])).release()
    except Busy:
        return False
    return True


def ask_long(pool: Pool) -> bool:
    """Whether a long request was answered in full."""
    try:
        return pool.post("/infer", LONG) == (200, ["ab" * 20])
    except OSError:
        return False


@contextmanager
def traffic(pool: Pool) -> Iterator[None]:
    """Eight clients that ask on and on."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            ask_long(pool)

    with ThreadPoolExecutor(8) as threads:
        for _ in range(8):
            threads.submit(ask)
        try:
            yield
        finally:
            stop.set()


@pytest.mark.parametrize("num_pools", [1, pytest.param(20, marks=[pytest.mark.slow])])
@pytest.mark.timeout(900)
def test_a_worker_killed_at_any_moment_leaves_nothing_and_comes_back(
    tmp_path: Path, num_pools: int
) -> None:
    with fake_machine(tmp_path, gpus=2) as machine:
        # Not more often in each: a worker that dies again and again waits longer each time.
        for _ in range(num_pools):
            with Pool(tmp_path, *HAS_CHILD, *SLOW, env=machine.env()) as pool:
                kill_at_each_moment(pool.wait_ready(workers=2))


def kill_at_each_moment(pool: Pool) -> None:
    for moment in ("idle", "loading", "running"):
        with traffic(pool) if moment == "running" else nullcontext():
            await_moment(pool, moment)
            victims = group(pool, 0)
            assert len(victims) == 2
            kill(victims[0])
            assert seconds_until_gone(victims) < GONE_S
    pool.wait_ready(workers=2, deadline_s=60)
    assert [worker["gpus"] for worker in pool.workers()] == [[uuid_of(0)], [uuid_of(1)]]
    assert pool.infer("abc", max_tokens=3) == ["abc"]


def test_a_killed_worker_costs_the_others_nothing(tmp_path: Path) -> None:
    with (
        fake_machine(tmp_path, gpus=2) as machine,
        Pool(tmp_path, *HAS_CHILD, *SLOW, env=machine.env()) as pool,
        ThreadPoolExecutor(8) as threads,
    ):
        pool.wait_ready(workers=2)
        answers = [threads.submit(ask_long, pool) for _ in range(8)]
        wait_until(lambda: sum(w["inflight"] for w in pool.workers()) >= 8, 10, "eight requests")
        victim, other = pool.workers()
        kill(victim["pid"])
        num_safe = 8 - victim["inflight"]
        assert sum(answer.result() for answer in answers) >= num_safe
        assert pool.workers()[1]["pid"] == other["pid"]


@pytest.mark.parametrize("moment", ["loading", "running"])
def test_master_and_workers_killed_together_at_any_moment_leave_nothing(
    tmp_path: Path, moment: str
) -> None:
    with (
        fake_machine(tmp_path, gpus=2) as machine,
        Pool(tmp_path, *HAS_CHILD, *SLOW, env=machine.env()) as pool,
    ):
        with traffic(pool) if moment == "running" else nullcontext():
            await_moment(pool, moment)
            victims = [pool.process.pid, *group(pool, 0), *group(pool, 1)]
            kill(victims[0], *(worker["pid"] for worker in pool.workers()))
            pool.process.wait(5)
            assert seconds_until_gone(victims) < GONE_S
        for index in (0, 1):
            wait_until(lambda index=index: is_lease_free(machine, index), 2, "a free lease")
        assert can_bind(pool.port)
        flags = (*HAS_CHILD, "--cuda_visible_devices", "0,1")
        with Pool(tmp_path, *flags, env=machine.env()) as again:
            again.wait_ready(workers=2, deadline_s=20)
            assert "ERROR" not in again.log()


def test_a_master_killed_alone_takes_everything_with_it(tmp_path: Path) -> None:
    with (
        fake_machine(tmp_path, gpus=1) as machine,
        Pool(tmp_path, *HAS_CHILD, env=machine.env()) as pool,
    ):
        pool.wait_ready()
        pids = pool.pids()
        kill(pool.process.pid)
        pool.process.wait(5)
        assert seconds_until_gone(pids) < 5
        assert is_lease_free(machine, 0)


def can_bind(port: int) -> bool:
    """As gunicorn binds: connections that just ended do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
    return True
