"""A pool under systemd: its notifications, and a socket that outlives it."""

from __future__ import annotations

import concurrent.futures
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.notify_socket import NotifySocket
from tests.pool import SCRIPTED, Pool, wait_until

pytestmark = pytest.mark.server

HAS_CHILD = ("--model_name", "M", "--infer_type", "tests.engines.has_child:HasChild")


@pytest.fixture(name="systemd")
def _systemd(tmp_path: Path) -> Iterator[NotifySocket]:
    with NotifySocket(tmp_path) as systemd:
        yield systemd


def test_the_life_of_a_service_is_told(tmp_path: Path, systemd: NotifySocket) -> None:
    env = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "2000000"}
    flags = (*SCRIPTED, "--workers", "2", "--ready_quorum", "2", "--", "--load-s", "2")
    with Pool(tmp_path, *flags, env=env) as pool:
        systemd.wait_for("STATUS", "0 of 2 ready, 2 loading (counting sheep, 0 s)")
        systemd.wait_for("EXTEND_TIMEOUT_USEC", "60000000")
        assert not systemd.has("READY", "1")
        systemd.wait_for("READY", "1")
        assert pool.get("/readyz")[1]["ready"] == 2
        systemd.wait_for("STATUS", "2 of 2 ready")
        beats = systemd.count("WATCHDOG", "1")
        wait_until(lambda: systemd.count("WATCHDOG", "1") > beats, 5, "a heartbeat")
        assert not systemd.has("STOPPING", "1")
        assert pool.stop() == 0
        assert systemd.has("STOPPING", "1")


def test_workers_and_engines_cannot_speak_for_the_service(
    tmp_path: Path, systemd: NotifySocket
) -> None:
    with Pool(tmp_path, *HAS_CHILD, env={"NOTIFY_SOCKET": systemd.address}) as pool:
        pool.wait_ready()
        worker = psutil.Process(pool.workers()[0]["pid"])
        [child] = [p for p in worker.children() if "time.sleep(3600)" in " ".join(p.cmdline())]
        assert "NOTIFY_SOCKET" not in child.environ()
        assert "HOME" in child.environ()


def test_a_passed_socket_outlives_the_service(tmp_path: Path) -> None:
    """What is sent while nothing runs waits in the socket's backlog and is answered by the next
    start, as systemd's socket unit promises."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        concurrent.futures.ThreadPoolExecutor(1) as threads,
    ):
        with Pool(tmp_path, *SCRIPTED, listener=listener) as pool:
            pool.wait_ready()
            assert pool.infer("abc", max_tokens=3) == ["abc"]
            assert pool.stop(signal.SIGTERM) == 0
        answer = threads.submit(pool.infer, "later", max_tokens=5)
        with Pool(tmp_path, *SCRIPTED, listener=listener):
            assert answer.result(30) == ["later"]
