"""A running pool with scripted engines: loading, dying, coming back, fair answers to bad input."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.machine import fake_machine
from tests.pool import SCRIPTED, Pool, is_alive, wait_until

pytestmark = pytest.mark.server

PAGE = "https://page.example"


@pytest.fixture(scope="module", name="pool")
def _pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    flags = (*SCRIPTED, "--read_timeout_s", "2", "--cors_origin", PAGE)
    with Pool(tmp_path_factory.mktemp("pool"), *flags) as pool:
        yield pool.wait_ready()


def test_concurrent_requests_share_the_engines_batch(pool: Pool) -> None:
    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda i: pool.infer(f"p{i}", max_tokens=8), range(64)))
    assert answers == [[(f"p{i}" * 8)[:8]] for i in range(64)]


def test_half_sent_requests_do_not_stop_the_service(pool: Pool) -> None:
    clients = [socket.create_connection(("127.0.0.1", pool.port)) for _ in range(300)]
    for client in clients:
        client.sendall(b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Le")
    assert pool.infer("abc", max_tokens=3) == ["abc"]
    assert pool.get("/livez")[0] == 200
    clients[0].settimeout(10)
    assert clients[0].recv(100).startswith(b"HTTP/1.1 408")
    for client in clients:
        client.close()


POST, HOST = b"POST /infer HTTP/1.1\r\n", b"Host: localhost\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
RAW_REQUESTS = {
    "not http": (b"hello\r\n\r\n", 400),
    "two lengths": (POST + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "a list of lengths": (POST + HOST + b"Content-Length: 1, 1\r\n\r\n", 400),
    "a signed length": (POST + HOST + b"Content-Length: +1\r\n\r\n", 400),
    "length and chunked": (POST + HOST + b"Content-Length: 1\r\n" + CHUNKED + b"\r\n", 400),
    "unknown coding": (POST + HOST + b"Transfer-Encoding: x\r\n\r\n", 501),
    "blank before a colon": (POST + HOST + b"Transfer-Encoding : chunked\r\n\r\n", 400),
    "folded header": (POST + HOST + b"a: b\r\n c\r\n\r\n", 400),
    "bare line feeds": (b"GET /livez HTTP/1.1\nHost: localhost\n\n", 400),
    "zero byte": (POST + HOST + b"a: b\0c\r\n\r\n", 400),
    "bad chunk": (POST + HOST + CHUNKED + b"\r\nzz\r\n", 400),
    "long line": (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
    "long header": (POST + HOST + b"a: " + b"b" * 9000 + b"\r\n\r\n", 431),
    "101 headers": (POST + HOST + b"a: b\r\n" * 100 + b"\r\n", 431),
    "large body": (POST + HOST + b"Content-Length: 99999999\r\n\r\n", 413),
    "odd expectation": (b"GET /livez HTTP/1.1\r\n" + HOST + b"Expect: x\r\n\r\n", 417),
    "no host": (b"GET /livez HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /livez HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
    "a host with a path": (b"GET /pool HTTP/1.1\r\nHost: localhost/livez?\r\n\r\n", 400),
    "a foreign page": (
        POST + HOST + b"Origin: http://evil.example\r\nContent-Length: 0\r\n\r\n",
        403,
    ),
}


@pytest.mark.parametrize(("raw", "status"), RAW_REQUESTS.values(), ids=RAW_REQUESTS.keys())
def test_what_is_not_a_request_gets_the_same_json_error(
    pool: Pool, raw: bytes, status: int
) -> None:
    with socket.create_connection(("127.0.0.1", pool.port), timeout=10) as client:
        client.sendall(raw)
        response = http.client.HTTPResponse(client)
        response.begin()
        body = response.read()
    assert response.status == status
    assert response.headers["Content-Type"] == "application/json"
    assert body.startswith(b'{"error": {"message": ')
    assert pool.get("/livez")[0] == 200


def test_a_page_that_is_named_may_ask(pool: Pool) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", pool.port, 10)) as client:
        client.request("POST", "/infer", '{"instances": "a"}', {"Origin": PAGE})
        assert client.getresponse().status == 200


def test_a_kept_alive_connection_serves_many_requests(pool: Pool) -> None:
    client = http.client.HTTPConnection("127.0.0.1", pool.port, timeout=10)
    for i in range(20):
        client.request("POST", "/infer", f'{{"instances": "p{i}", "params": {{"max_tokens": 2}}}}')
        assert f"p{i}"[:2].encode() in client.getresponse().read()
    client.close()


def test_while_the_model_loads_infer_waits_and_the_probes_answer(tmp_path: Path) -> None:
    with Pool(tmp_path, *SCRIPTED, "--", "--load-s", "3") as pool:
        wait_until(lambda: _answers(pool), 20, "an answer of /livez")
        status, body = pool.get("/readyz")
        assert status == 503
        assert body["workers"][0]["state"] in ("starting", "loading")
        began = time.monotonic()
        assert pool.infer("abc", max_tokens=3) == ["abc"]
        assert time.monotonic() - began > 1
        assert pool.get("/readyz")[0] == 200


def test_a_request_that_waited_its_time_is_a_503(tmp_path: Path) -> None:
    with Pool(tmp_path, *SCRIPTED, "--max_wait_s", "1", "--", "--load-s", "60") as pool:
        wait_until(lambda: _answers(pool), 20, "an answer of /livez")
        status, body = pool.post("/infer", {"instances": "abc"})
        assert status == 503
        assert "loading" in body["error"]["message"]
        began = time.monotonic()
        pool.stop()
        assert time.monotonic() - began < 10


def _answers(pool: Pool) -> bool:
    try:
        return pool.get("/livez")[0] == 200
    except OSError:
        return False


def test_a_killed_worker_comes_back_on_its_slice(tmp_path: Path) -> None:
    flags = ("--model_name", "M", "--infer_type", "tests.engines.has_child:HasChild")
    with (
        fake_machine(tmp_path, gpus=4, links=[(0, 1), (2, 3)]) as machine,
        Pool(tmp_path, *flags, "--per_proc_gpus", "2", env=machine.env()) as pool,
    ):
        pool.wait_ready(workers=2)
        before = pool.workers()
        assert [len(worker["gpus"]) for worker in before] == [2, 2]
        assert len({uuid for worker in before for uuid in worker["gpus"]}) == 4
        group = [pid for pid in pool.pids() if _group(pid) == before[0]["pid"]]
        assert len(group) == 2  # the worker and its engine's child
        os.kill(before[0]["pid"], signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, group)), 5, "the end of the worker's group")
        wait_until(
            lambda: (
                all(worker["state"] == "ready" for worker in pool.workers())
                and pool.workers()[0]["pid"] != before[0]["pid"]
            ),
            30,
            "a new worker",
        )
        after = pool.workers()
        assert after[0]["gpus"] == before[0]["gpus"]
        assert after[1]["pid"] == before[1]["pid"]
        assert after[0]["restarts"] == 1


def test_master_and_workers_killed_together_leave_nothing(tmp_path: Path) -> None:
    flags = ("--model_name", "M", "--infer_type", "tests.engines.has_child:HasChild")
    with (
        fake_machine(tmp_path, gpus=2) as machine,
        Pool(tmp_path, *flags, env=machine.env()) as pool,
    ):
        pool.wait_ready(workers=2)
        pids = pool.pids()
        assert len(pids) == 8  # master, GPU watch; two workers with a child and a guardian each
        for pid in [pool.process.pid, *(worker["pid"] for worker in pool.workers())]:
            os.kill(pid, signal.SIGKILL)
        pool.process.wait(5)
        wait_until(lambda: not any(map(is_alive, pids)), 2, "the end of every process")
        with Pool(tmp_path, *flags, env=machine.env()) as again:
            again.wait_ready(workers=2, deadline_s=20)


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


def test_after_a_reload_every_slot_has_its_worker(tmp_path: Path) -> None:
    with (
        fake_machine(tmp_path, gpus=3) as machine,
        Pool(tmp_path, *SCRIPTED, env=machine.env()) as pool,
    ):
        pool.wait_ready(workers=3)
        before = {worker["pid"] for worker in pool.workers()}
        pool.process.send_signal(signal.SIGHUP)
        wait_until(
            lambda: all(
                worker["state"] == "ready" and worker["pid"] not in before
                for worker in _workers(pool)
            ),
            40,
            "a new ready worker on every slot",
        )
        assert sum(worker["inflight"] for worker in pool.workers()) <= 1  # this request itself


def _workers(pool: Pool) -> list[dict[str, Any]]:
    try:
        return pool.workers()
    except OSError:
        return [{"state": "unknown", "pid": 0}]


def test_no_spelling_of_infer_reaches_the_threads_of_the_probes(tmp_path: Path) -> None:
    with (
        Pool(tmp_path, *SCRIPTED, "--", "--token-s", "0.05") as pool,
        concurrent.futures.ThreadPoolExecutor(8) as threads,
    ):
        pool.wait_ready()
        body = {"instances": "ab", "params": {"max_tokens": 60}}
        answers = [threads.submit(pool.post, "/%69nfer", body) for _ in range(8)]
        wait_until(lambda: pool.workers()[0]["inflight"] >= 8, 10, "eight running requests")
        began = time.monotonic()
        assert pool.get("/livez")[0] == 200
        assert time.monotonic() - began < 2
        assert all(answer.result()[0] == 200 for answer in answers)


def test_without_free_files_the_worker_lives(tmp_path: Path) -> None:
    with Pool(tmp_path, *SCRIPTED, limit_files=64) as pool:
        pool.wait_ready()
        pid = pool.workers()[0]["pid"]
        clients = [socket.create_connection(("127.0.0.1", pool.port)) for _ in range(150)]
        for client in clients:
            client.close()
        assert pool.infer("abc", max_tokens=3) == ["abc"]
        assert pool.workers()[0]["pid"] == pid


def test_the_number_of_waiting_requests_is_told(tmp_path: Path) -> None:
    with (
        Pool(tmp_path, *SCRIPTED, "--", "--load-s", "4") as pool,
        concurrent.futures.ThreadPoolExecutor(3) as threads,
    ):
        wait_until(lambda: _answers(pool), 20, "an answer of /livez")
        answers = [threads.submit(pool.infer, "abc", max_tokens=3) for _ in range(3)]
        wait_until(lambda: pool.workers()[0]["waiting"] == 3, 10, "three waiting requests")
        assert [answer.result() for answer in answers] == [["abc"]] * 3
        wait_until(lambda: pool.workers()[0]["waiting"] == 0, 5, "an empty room")


def test_a_load_that_fails_is_tried_again_later(tmp_path: Path) -> None:
    flags = ("--model_name", "M", "--infer_type", "tests.engines.fails_to_load:FailsToLoad")
    with Pool(tmp_path, *flags, "--", str(tmp_path / "may-load")) as pool:
        wait_until(lambda: "failed 1 time(s) in a row" in pool.log(), 20, "the first failure")
        assert pool.process.poll() is None
        wait_until(lambda: "failed 2 time(s) in a row" in pool.log(), 20, "the second failure")
        assert "the disk is on fire" in pool.workers()[0]["last_error"]
        (tmp_path / "may-load").touch()
        pool.wait_ready(deadline_s=20)


def test_an_engine_that_dies_is_replaced(tmp_path: Path) -> None:
    flags = ("--model_name", "M", "--infer_type", "tests.engines.dies_on_demand:DiesOnDemand")
    with Pool(tmp_path, *flags) as pool:
        pool.wait_ready()
        first = pool.workers()[0]["pid"]
        status, body = pool.post("/infer", {"instances": "die", "params": {"max_tokens": 2}})
        assert status == 503
        assert body["error"]["type"] == "unavailable_error"
        wait_until(lambda: pool.workers()[0]["pid"] not in (None, first), 20, "a new worker")
        pool.wait_ready()
        assert pool.infer("ab", max_tokens=2) == ["ab"]
