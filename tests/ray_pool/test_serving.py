"""Requests to a pool on a real Ray, with scripted engines."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import psutil
import pytest

from tests.pool import Pool, wait_until
from tests.ray_pool.cluster import replica_pids
from tests.scrape import scrape, total

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(300)]

LONG: dict[str, Any] = {"max_tokens": 900}


def completion(**more: Any) -> dict[str, Any]:
    return {"model": "M", "prompt": "ab", "max_tokens": 5, **more}


def inflight(pool: Pool) -> int:
    return sum(int(worker["inflight"]) for worker in pool.workers())


@contextmanager
def taken(pool: Pool, count: int) -> Iterator[None]:
    """So many long requests run within it, each in a slot of its own."""
    with ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(pool.send("/v1/completions", completion(**LONG)))
            assert client
        wait_until(lambda: inflight(pool) == min(count, 6), 10, "the slots taken")
        yield
    wait_until(lambda: inflight(pool) == 0, 5, "the slots free")


def test_infer_answers_in_order(pool: Pool) -> None:
    prompts = [f"{i:03}" for i in range(40)]
    assert pool.infer(prompts, max_tokens=3) == prompts


def test_what_is_told_of_the_pool_is_told_of_all_replicas(pool: Pool) -> None:
    ready = pool.get("/readyz")[1]
    assert (ready["ready"], [worker["slot"] for worker in ready["workers"]]) == (2, [0, 1])
    workers = pool.workers()
    assert [worker["slots"] for worker in workers] == [3, 3]
    assert len(set(replica_pids(pool))) == 2
    assert all(psutil.pid_exists(pid) for pid in replica_pids(pool))
    before = total(scrape(pool), "gpupool_generated_tokens_total")
    for _ in range(8):
        pool.infer("ab", max_tokens=4)
    assert total(scrape(pool), "gpupool_generated_tokens_total") - before == 32


def test_a_stream_comes_token_by_token(pool: Pool) -> None:
    times = []
    body = completion(stream=True, max_tokens=30)
    with httpx.stream("POST", f"{pool.url}/v1/completions", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                times.append(time.monotonic())
                last = line
    assert last == "data: [DONE]"
    assert len(times) == 32  # the end of the text and of the stream
    assert times[25] - times[0] > 0.3  # of 30 tokens in 0.6 s


def test_an_engines_slots_are_what_serve_fills(pool: Pool) -> None:
    """And the replicas that told them are still those that serve."""
    pids = replica_pids(pool)
    with taken(pool, 9):
        most = 0
        for _ in range(20):
            most = max(most, *(int(worker["inflight"]) for worker in pool.workers()))
    assert most == 3
    assert replica_pids(pool) == pids


@pytest.mark.parametrize("is_stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("path", ["/v1/completions", "/infer"])
def test_clients_that_leave_leave_nothing_behind(pool: Pool, path: str, is_stream: bool) -> None:
    body = completion(stream=is_stream, **LONG)
    if path == "/infer":
        body = {"instances": ["ab"], "params": LONG}

    def leave() -> None:
        clients = [pool.send(path, body) for _ in range(6)]
        wait_until(lambda: inflight(pool) == 6, 10, "six requests")
        for client in clients:
            client.close()
        wait_until(lambda: inflight(pool) == 0, 2, "their end")

    leave()
    before = [psutil.Process(pid).num_threads() for pid in replica_pids(pool)]
    for _ in range(8):
        leave()
    after = [psutil.Process(pid).num_threads() for pid in replica_pids(pool)]
    assert all(now <= then + 3 for now, then in zip(after, before, strict=True))
    assert pool.infer("ab", max_tokens=4) == ["abab"]


def test_a_client_that_leaves_while_it_waits_takes_no_slot_later(pool: Pool) -> None:
    with taken(pool, 6):
        waiting = pool.send("/v1/completions", completion(prompt="zz", max_tokens=1))
        time.sleep(0.3)
        waiting.close()
        before = sum(worker["served"] for worker in pool.workers())
    assert sum(worker["served"] for worker in pool.workers()) == before


def test_a_full_pool_says_so_at_once_and_its_probes_answer(pool: Pool) -> None:
    with taken(pool, 6), ExitStack() as stack:
        for _ in range(4 + 6):  # Serve counts what is on its way to a slot as waiting
            stack.enter_context(pool.send("/v1/completions", completion()))
        wait_until(lambda: _is_full(pool), 10, "a full queue")
        began = time.monotonic()
        with httpx.Client(base_url=pool.url) as client:
            answer = client.post("/v1/completions", json=completion())
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
            assert answer.json()["error"]["code"] == "overloaded"
            for path in ("/livez", "/readyz", "/pool", "/metrics"):
                assert client.get(path).status_code == 200
        assert time.monotonic() - began < 2


def _is_full(pool: Pool) -> bool:
    with pool.send("/v1/completions", completion(max_tokens=1)) as client:
        client.settimeout(0.3)
        try:
            return client.recv(4096).startswith(b"HTTP/1.1 429 ")
        except TimeoutError:
            return False


def test_a_batch_runs_on_all_replicas(pool: Pool) -> None:
    prompts = [f"{i:03}" for i in range(200)]
    status, answer = pool.post(
        "/infer", {"instances": prompts, "params": {"max_tokens": 3}, "detail": True}
    )
    assert status == 200
    assert [item["text"] for item in answer] == prompts
    assert {item["replica"] for item in answer} == {0, 1}


def test_more_batches_than_slots_do_not_wait_for_each_other(pool: Pool) -> None:
    """Who coordinates gives its slot back, or nothing would be left for the items."""
    with ThreadPoolExecutor(12) as threads:
        batches = [threads.submit(pool.infer, ["ab"] * 8, max_tokens=4) for _ in range(12)]
        assert all(batch.result() == ["abab"] * 8 for batch in batches)


def test_infer_waits_for_a_full_pool(pool: Pool) -> None:
    with ThreadPoolExecutor(16) as threads:
        answers = [threads.submit(pool.infer, "ab", max_tokens=50) for _ in range(16)]
        assert all(answer.result() == ["ab" * 25] for answer in answers)


def test_a_half_sent_request_holds_no_slot(pool: Pool) -> None:
    head = b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nx"
    with ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", pool.port)))
            for _ in range(20)
        ]
        for client in clients:
            client.sendall(head)
        assert pool.infer(["ab"] * 6, max_tokens=2) == ["ab"] * 6
        clients[0].settimeout(10)
        assert clients[0].recv(4096).startswith(b"HTTP/1.1 408 ")


def test_the_request_id_comes_back_once_and_is_in_the_log(pool: Pool) -> None:
    headers = {"X-Request-Id": "an-id-of-mine"}
    for path, body in (("/infer", {"instances": "a"}), ("/v1/completions", completion())):
        answer = httpx.post(pool.url + path, json=body, headers=headers)
        assert answer.headers.get_list("x-request-id") == ["an-id-of-mine"]
    wait_until(lambda: pool.log().count("access id=an-id-of-mine") == 2, 10, "the log's lines")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/infer", {"instances": "a", "params": {"temprature": 1}}, 400),
        ("/v1/completions", completion(strem=1), 400),
        ("/v1/nothing", {}, 404),
        ("/infer", b"x" * (9 << 20), 413),
    ],
    ids=["infer", "completions", "no route", "large"],
)
def test_errors_have_the_one_shape(pool: Pool, path: str, body: Any, status: int) -> None:
    found, answer = pool.post(path, body)
    assert found == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}


def test_a_page_of_a_browser_may_not_ask(pool: Pool) -> None:
    status, answer = pool.post("/infer", {"instances": "a"}, Origin="http://elsewhere")
    assert (status, answer["error"]["type"]) == (403, "permission_error")


def test_the_page_is_there(pool: Pool) -> None:
    answer = httpx.get(pool.url, headers={"Accept": "text/html"})
    assert answer.headers["content-type"].startswith("text/html")


def test_nothing_listens_but_on_the_loopback(pool: Pool) -> None:
    found = {
        conn.laddr.ip
        for conn in psutil.net_connections("tcp")
        if conn.status == psutil.CONN_LISTEN and conn.pid in pool.pids()
    }
    assert found <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert found


def test_ray_asks_for_a_token_that_only_the_pool_has(pool: Pool) -> None:
    environ = psutil.Process(replica_pids(pool)[0]).environ()
    assert environ["RAY_AUTH_MODE"] == "token"
    assert len(environ["RAY_AUTH_TOKEN"]) == 64
    lines = [" ".join(psutil.Process(pid).cmdline()) for pid in pool.pids()]
    assert not [line for line in lines if environ["RAY_AUTH_TOKEN"] in line]
    assert environ["RAY_AUTH_TOKEN"] not in json.dumps(pool.log())
