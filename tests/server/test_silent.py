"""Thousands of clients that say nothing, or half of something, cost the others nothing."""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import signal
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.pool import SCRIPTED, Pool, is_alive, wait_until
from tests.server.load import ask

pytestmark = [pytest.mark.server, pytest.mark.quiet]

NUM_IDLE = 5_000
NUM_HALF_SENT = 300
HALF = b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"


@contextlib.contextmanager
def many_files(wanted: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, hard)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def silent_clients(pool: Pool) -> Iterator[None]:
    with many_files(NUM_IDLE + NUM_HALF_SENT + 500), contextlib.ExitStack() as opened:
        for number in range(NUM_IDLE + NUM_HALF_SENT):
            client = opened.enter_context(socket.create_connection(("127.0.0.1", pool.port)))
            if number < NUM_HALF_SENT:
                client.sendall(HALF)
        yield


def test_silent_and_half_sent_connections_cost_the_others_nothing(tmp_path: Path) -> None:
    with Pool(tmp_path, *SCRIPTED, "--workers", "2", "--read_timeout_s", "120") as pool:
        pool.wait_ready(workers=2)
        workers = [psutil.Process(worker["pid"]) for worker in pool.workers()]
        before = [(w.num_threads(), w.memory_info().rss) for w in workers]
        with silent_clients(pool):
            seconds = []
            for _ in range(200):
                began = time.monotonic()
                connection = http.client.HTTPConnection("127.0.0.1", pool.port, timeout=10)
                connection.request("GET", "/livez")
                assert connection.getresponse().status == 200
                connection.close()
                seconds.append(time.monotonic() - began)
            for number in range(20):
                assert pool.infer(f"p{number}", max_tokens=2) == [f"p{number}"[:2]]
            after = [(w.num_threads(), w.memory_info().rss) for w in workers]
        p99 = statistics.quantiles(seconds, n=100)[98]
        growth = sum(a[1] - b[1] for a, b in zip(after, before, strict=True))
        print(f"/livez p99 {p99 * 1000:.0f} ms, {growth / 1e6:.0f} MB more")
        assert p99 <= 0.1
        assert growth < 300e6
        assert all(a[0] <= b[0] + 8 for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("num_kept_alive", [0, 20], ids=["silent", "kept_alive"])
def test_at_the_limit_of_connections_the_oldest_idle_one_makes_room(
    tmp_path: Path, num_kept_alive: int
) -> None:
    flags = (*SCRIPTED, "--threads", "8")
    # With so few files a worker has 64 connections.
    with Pool(tmp_path, *flags, limit_files=320) as pool, contextlib.ExitStack() as opened:
        pool.wait_ready()
        clients = [http.client.HTTPConnection("127.0.0.1", pool.port, timeout=5) for _ in range(80)]
        for number, client in enumerate(clients):
            opened.callback(client.close)
            client.connect()
            if number < num_kept_alive:
                client.request("GET", "/livez")
                client.getresponse().read()
        body = {"instances": "abc", "params": {"max_tokens": 3}}
        assert pool.post("/infer", body, timeout_s=5) == (200, ["abc"])
        assert clients[0].sock.recv(1) == b""
        clients[-1].request("GET", "/livez")
        assert clients[-1].getresponse().status == 200


def test_a_connection_that_makes_room_may_just_have_become_readable(tmp_path: Path) -> None:
    """One turn of the loop has both: a new connection, for which the oldest idle one is closed,
    and the first bytes of that one."""
    with Pool(tmp_path, *SCRIPTED, "--threads", "8", limit_files=320) as pool:
        pid = pool.wait_ready().workers()[0]["pid"]
        clients = [socket.create_connection(("127.0.0.1", pool.port)) for _ in range(70)]
        clients[0].settimeout(5)
        assert clients[0].recv(1) == b""  # the limit is reached
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, 5, "its stop")
        clients.append(socket.create_connection(("127.0.0.1", pool.port)))
        for client in clients[1:20]:
            with contextlib.suppress(OSError):  # some are closed already
                client.sendall(b"GET /livez HTTP/1.1\r\n")
        os.kill(pid, signal.SIGCONT)
        assert pool.infer("abc", max_tokens=3) == ["abc"]
        for client in clients:
            client.close()
        assert pool.workers()[0]["pid"] == pid


def test_connections_that_siblings_hand_over_do_not_go_beyond_the_limit(tmp_path: Path) -> None:
    """Else the worker would run out of files, of which it needs some for other things."""
    flags = (*SCRIPTED, "--threads", "8", "--workers", "2")
    with Pool(tmp_path, *flags, limit_files=320) as pool, contextlib.ExitStack() as opened:
        leaving, staying = (worker["pid"] for worker in pool.wait_ready(workers=2).workers())
        for taker, other in ((leaving, staying), (staying, leaving)):
            os.kill(other, signal.SIGSTOP)
            for _ in range(50):
                opened.enter_context(socket.create_connection(("127.0.0.1", pool.port)))
            wait_until(lambda pid=taker: num_connections(pid) >= 50, 5, "fifty connections")
            os.kill(other, signal.SIGCONT)
        os.kill(leaving, signal.SIGTERM)
        wait_until(lambda: not is_alive(leaving), 10, "the end of the one that leaves")
        assert 50 < num_connections(staying) <= 64


def num_connections(pid: int) -> int:
    found = psutil.Process(pid).net_connections("tcp")
    return sum(connection.status == psutil.CONN_ESTABLISHED for connection in found)


@pytest.mark.parametrize(
    ("workers", "has_asked"),
    [(2, True), (2, False), (1, True)],
    ids=["kept_alive", "silent", "kept_alive by the only worker"],
)
def test_idle_connections_outlive_a_reload(tmp_path: Path, workers: int, has_asked: bool) -> None:
    with (
        Pool(tmp_path, *SCRIPTED, "--workers", str(workers)) as pool,
        contextlib.ExitStack() as opened,
    ):
        before = [worker["pid"] for worker in pool.wait_ready(workers).workers()]
        clients = [
            http.client.HTTPConnection("127.0.0.1", pool.port, timeout=20) for _ in range(12)
        ]
        for client in clients:
            opened.callback(client.close)
            client.connect()
            assert not has_asked or ask(client, "/infer", "ab", 2) == (200, ["ab"])
        pool.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "reload: done" in pool.log(), 40, "the end of the reload")
        wait_until(lambda: not any(map(is_alive, before)), 10, "the end of the old workers")
        for client in clients:
            assert ask(client, "/infer", "ab", 2) == (200, ["ab"])
