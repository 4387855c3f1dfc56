"""Pools whose GPUs fail while they serve: quarantine, spares, and everybody else's requests."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.machine import fake_machine, uuid_of
from tests.pool import SCRIPTED, Pool, is_alive, wait_until

pytestmark = pytest.mark.server

SLOW = ("--", "--token-s", "0.02")


def wait_watched(pool: Pool, times: int = 1) -> None:
    """Until the watch listens to the driver."""
    wait_until(lambda: pool.log().count("GPU watch: watching") >= times, 20, "the GPU watch")


def watches(pool: Pool) -> list[psutil.Process]:
    children = psutil.Process(pool.process.pid).children()
    return [child for child in children if "gpupool.gpu_watch" in child.cmdline()]


def worker(pool: Pool, slot: int) -> dict[str, Any]:
    """The row of a slot; while a worker leaves, the pool may need another try to answer."""
    try:
        return next(row for row in pool.workers() if row["slot"] == slot)
    except OSError:
        return {"state": "unknown", "gpus": [], "pid": 0}


@contextmanager
def steady_requests(pool: Pool) -> Iterator[list[int]]:
    """Eight clients that never stop asking; the statuses of what they got."""
    is_over = threading.Event()
    statuses: list[int] = []

    def ask() -> None:
        body = {"instances": "abc", "params": {"max_tokens": 20}}
        while not is_over.is_set():
            try:
                statuses.append(pool.post("/infer", body)[0])
            except OSError:
                statuses.append(0)

    clients = [threading.Thread(target=ask) for _ in range(8)]
    for client in clients:
        client.start()
    try:
        wait_until(lambda: len(statuses) >= 16, 20, "the first answers")
        yield statuses
    finally:
        is_over.set()
        for client in clients:
            client.join()


def test_a_spare_heals_the_slice_of_a_faulty_gpu(tmp_path: Path) -> None:
    with (
        fake_machine(tmp_path, gpus=3) as machine,
        Pool(tmp_path, *SCRIPTED, "--workers", "2", *SLOW, env=machine.env()) as pool,
    ):
        pool.wait_ready(workers=2)
        wait_watched(pool)
        before = pool.workers()
        with steady_requests(pool) as statuses:
            machine.xid(0, 79)
            wait_until(
                lambda: (
                    worker(pool, 0)["gpus"] == [uuid_of(2)] and worker(pool, 0)["state"] == "ready"
                ),
                20,
                "a worker on the spare GPU",
            )
        assert set(statuses) == {200}
        assert pool.workers()[1]["pid"] == before[1]["pid"]
        assert f"GPU 0 ({uuid_of(0)}) is quarantined: Xid 79" in pool.workers()[0]["last_error"]
        assert "is quarantined until the pool restarts: Xid 79 (fell off the bus)" in pool.log()


def test_without_a_spare_the_slot_is_quarantined_and_the_rest_serve(tmp_path: Path) -> None:
    with (
        fake_machine(tmp_path, gpus=2) as machine,
        Pool(tmp_path, *SCRIPTED, *SLOW, env=machine.env()) as pool,
    ):
        pool.wait_ready(workers=2)
        wait_watched(pool)
        with steady_requests(pool) as statuses:
            machine.set_gpu(1, lost=1)
            wait_until(lambda: worker(pool, 1)["state"] == "quarantined", 20, "a quarantine")
        assert set(statuses) == {200}
        assert pool.workers()[1]["phase"] == (
            f"GPU 1 ({uuid_of(1)}) is quarantined: lost (fell off the bus)"
        )
        assert pool.workers()[1]["gpus"] == []
        assert pool.get("/readyz")[1]["ready"] == 1


def test_a_slice_of_two_keeps_its_good_gpu(tmp_path: Path) -> None:
    with (
        fake_machine(tmp_path, gpus=5, links=[(0, 1), (2, 3)]) as machine,
        Pool(tmp_path, *SCRIPTED, "--per_proc_gpus", "2", env=machine.env()) as pool,
    ):
        pool.wait_ready(workers=2)
        wait_watched(pool)
        machine.xid(3, 48)
        wait_until(
            lambda: (
                worker(pool, 1)["gpus"] == [uuid_of(2), uuid_of(4)]
                and worker(pool, 1)["state"] == "ready"
            ),
            20,
            "a worker on the good GPU and the spare",
        )
        assert worker(pool, 0)["gpus"] == [uuid_of(0), uuid_of(1)]


def test_an_applications_own_xid_changes_nothing(tmp_path: Path) -> None:
    with (
        fake_machine(tmp_path, gpus=1) as machine,
        Pool(tmp_path, *SCRIPTED, env=machine.env()) as pool,
    ):
        pool.wait_ready()
        wait_watched(pool)
        before = pool.workers()[0]["pid"]
        machine.xid(0, 31)
        wait_until(lambda: "Xid 31 is an application's own" in pool.log(), 10, "the note")
        assert pool.infer("abc", max_tokens=3) == ["abc"]
        assert pool.workers()[0]["pid"] == before
        assert "quarantined" not in pool.log()


def test_a_reload_does_not_end_a_quarantine(tmp_path: Path) -> None:
    with (
        fake_machine(tmp_path, gpus=3) as machine,
        Pool(tmp_path, *SCRIPTED, "--workers", "2", env=machine.env()) as pool,
    ):
        pool.wait_ready(workers=2)
        wait_watched(pool)
        machine.xid(2, 79)  # the spare one, which nobody has
        wait_until(lambda: f"({uuid_of(2)}) is quarantined" in pool.log(), 10, "a quarantine")
        before = {row["pid"] for row in pool.workers()}
        pool.process.send_signal(signal.SIGHUP)
        wait_until(
            lambda: all(
                row["state"] == "ready" and row["pid"] not in before
                for row in [worker(pool, 0), worker(pool, 1)]
            ),
            40,
            "new workers",
        )
        machine.xid(1, 79)
        wait_until(lambda: worker(pool, 1)["state"] == "quarantined", 20, "a second quarantine")


def test_a_watch_that_dies_is_started_again(tmp_path: Path) -> None:
    with (
        fake_machine(tmp_path, gpus=2) as machine,
        Pool(tmp_path, *SCRIPTED, env=machine.env()) as pool,
    ):
        pool.wait_ready(workers=2)
        wait_watched(pool)
        [watch] = watches(pool)
        watch.kill()
        wait_watched(pool, times=2)
        assert "the GPU watch ended; it starts again in 1 s" in pool.log()
        machine.xid(0, 79)
        wait_until(lambda: worker(pool, 0)["state"] == "quarantined", 20, "a quarantine")


def test_the_watch_ends_with_the_pool(tmp_path: Path) -> None:
    with (
        fake_machine(tmp_path, gpus=1) as machine,
        Pool(tmp_path, *SCRIPTED, env=machine.env()) as pool,
    ):
        pool.wait_ready()
        wait_watched(pool)
        [watch] = watches(pool)
        assert pool.stop() == 0
        assert not is_alive(watch.pid)


def test_the_watch_inherits_nothing_of_the_pool(tmp_path: Path) -> None:
    """A copy of the listening socket, or of a lock, would outlive a master that is killed."""
    with (
        fake_machine(tmp_path, gpus=1) as machine,
        Pool(tmp_path, *SCRIPTED, env=machine.env()) as pool,
    ):
        pool.wait_ready()
        wait_watched(pool)
        [watch] = watches(pool)
        targets = {os.readlink(fd) for fd in Path(f"/proc/{watch.pid}/fd").iterdir()}
        assert not {target for target in targets if "socket" in target or "lock" in target}


def test_a_machine_without_gpus_has_no_watch(tmp_path: Path) -> None:
    with Pool(tmp_path, *SCRIPTED, "--", "--load-s", "1") as pool:
        pool.wait_ready()
        assert watches(pool) == []
        assert "GPU watch" not in pool.log()
