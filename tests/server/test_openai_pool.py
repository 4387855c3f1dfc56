"""What holds for /v1 in a pool whatever engine speaks it: one that is played by a script."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pool import Pool, wait_until

pytestmark = pytest.mark.server

SPEAKS = ("--model_name", "M", "--infer_type", "tests.engines.speaks_openai:SpeaksOpenAI")
PATH = "/v1/completions"
NUM_BROKEN = [50, pytest.param(1000, marks=pytest.mark.slow)]


@pytest.fixture(scope="module", name="pool")
def _pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Two workers of four slots; a token takes 10 ms."""
    flags = (*SPEAKS, "--workers", "2", "--max_waiting", "3")
    with Pool(tmp_path_factory.mktemp("openai"), *flags, "--", "--token-s", "0.01") as pool:
        yield pool.wait_ready(workers=2)


def body_of(prompt: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "M", "prompt": prompt, "max_tokens": 5} | fields


def read(client: socket.socket) -> tuple[int, bytes]:
    with contextlib.closing(client):
        response = http.client.HTTPResponse(client)
        response.begin()
        return response.status, response.read()


def running(pool: Pool) -> int:
    return sum(worker["running"] for worker in pool.workers())


def told(pool: Pool, metric: str) -> list[int]:
    """By each worker's engine."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", pool.port)) as connection:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    return [int(float(line.split()[-1])) for line in lines if line.startswith(metric)]


def tasks(pool: Pool) -> int:
    return sum(told(pool, "scripted_openai_tasks"))


def test_the_garbage_collector_never_stops_the_streams_for_what_was_loaded(pool: Pool) -> None:
    assert min(told(pool, "scripted_frozen_objects")) > 10_000


def test_an_answer(pool: Pool) -> None:
    status, answer = pool.post(PATH, body_of("ab"))
    assert status == 200
    assert answer["choices"] == [{"index": 0, "text": "ababa", "finish_reason": "length"}]
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 5}


def test_a_stream_comes_token_by_token(pool: Pool) -> None:
    client = pool.send(PATH, body_of("ab", max_tokens=30, stream=True))
    response = http.client.HTTPResponse(client)
    response.begin()
    times = []
    with contextlib.closing(client):
        while line := response.readline():
            if line.startswith(b"data: {"):
                times.append(time.monotonic())
    assert len(times) == 30
    assert times[-1] - times[0] > 0.2


def test_a_connection_takes_one_request_after_the_other(pool: Pool) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", pool.port)
    headers = {"Content-Type": "application/json"}
    with contextlib.closing(connection):
        for _ in range(3):
            connection.request("POST", PATH, json.dumps(body_of("ab")), headers)
            sock = connection.sock
            assert json.load(connection.getresponse())["choices"][0]["text"] == "ababa"
            connection.request("GET", "/livez")
            assert connection.getresponse().read()
            assert connection.sock is sock


def test_requests_go_to_the_idler_worker(pool: Pool) -> None:
    clients = [pool.send(PATH, body_of("ab", max_tokens=60)) for _ in range(4)]
    wait_until(lambda: running(pool) == 4, 5, "running requests")
    assert [worker["running"] for worker in pool.workers()] == [2, 2]
    assert [read(client)[0] for client in clients] == [200] * 4


def test_with_a_full_room_the_next_is_told_at_once(pool: Pool) -> None:
    clients = [pool.send(PATH, body_of("ab", max_tokens=100)) for _ in range(8)]
    wait_until(lambda: running(pool) == 8, 5, "full slots")
    clients += [pool.send(PATH, body_of("ab")) for _ in range(3)]
    wait_until(lambda: sum(worker["waiting"] for worker in pool.workers()) == 3, 5, "a full room")
    began = time.monotonic()
    status, answer = pool.post(PATH, body_of("ab"))
    assert (status, answer["error"]["type"]) == (429, "overloaded_error")
    assert time.monotonic() - began < 0.5
    assert [read(client)[0] for client in clients] == [200] * 11


def test_no_spelling_gets_past_a_full_room(pool: Pool) -> None:
    for path in ("/v1/%63ompletions", "/%761/completions", "//v1/completions"):
        assert pool.post(path, body_of("ab"))[0] == 404


def test_the_prompts_of_a_list_run_on_all_workers(pool: Pool) -> None:
    prompts = [f"{index:02}" for index in range(30)]
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        answer = threads.submit(pool.post, PATH, body_of(prompts, max_tokens=20))
        wait_until(
            lambda: all(worker["running"] == 4 for worker in pool.workers()), 5, "two busy workers"
        )
    status, merged = answer.result()
    assert status == 200
    assert [choice["text"][:2] for choice in merged["choices"]] == prompts
    assert [choice["index"] for choice in merged["choices"]] == list(range(30))
    assert merged["usage"] == {"prompt_tokens": 60, "completion_tokens": 600}


def test_an_item_that_is_wrong_is_the_lists_error(pool: Pool) -> None:
    status, answer = pool.post(PATH, body_of(["ab", "?", "cd"]))
    assert (status, answer["error"]["message"]) == (400, "a question")


@pytest.mark.parametrize("count", NUM_BROKEN)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_clients_that_leave_leave_nothing_behind(pool: Pool, stream: bool, count: int) -> None:
    wait_until(lambda: running(pool) == 0, 5, "idle slots")
    before = tasks(pool)
    for _ in range(count // 10):
        clients = [pool.send(PATH, body_of("ab", max_tokens=900, stream=stream)) for _ in range(10)]
        for client in clients[: 8 if stream else 0]:
            assert client.recv(1)
        for client in clients:
            client.close()
    wait_until(lambda: running(pool) == 0, 5, "slots that come back")
    wait_until(lambda: tasks(pool) <= before, 5, "tasks that end")
    assert pool.post(PATH, body_of("ab"))[0] == 200


def test_a_client_that_leaves_frees_its_slot_at_once(pool: Pool) -> None:
    with pool.send(PATH, body_of("ab", max_tokens=900, stream=True)) as client:
        assert client.recv(1)
        assert running(pool) == 1
    wait_until(lambda: running(pool) == 0, 0.7, "a free slot")


def test_tokens_are_counted(pool: Pool) -> None:
    def generated() -> int:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", pool.port)) as connection:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        name = "gpupool_generated_tokens_total"
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith(name))

    before = generated()
    pool.post(PATH, body_of("ab", max_tokens=7))
    read(pool.send(PATH, body_of("ab", max_tokens=8, stream=True)))
    pool.post(PATH, body_of(["ab", "cd"], max_tokens=9))
    assert generated() - before == 7 + 8 + 18


def test_while_no_model_is_there_the_list_of_models_is_a_503(tmp_path: Path) -> None:
    with Pool(tmp_path, *SPEAKS, "--max_wait_s", "0.5", "--", "--load-s", "60") as pool:
        wait_until(lambda: is_up(pool), 20, "an open port")
        for path in ("/v1/models", "/openapi.json"):
            status, answer = pool.get(path)
            assert (status, answer["error"]["code"]) == (503, "not_ready")
        status, answer = pool.post(PATH, body_of("ab"))
        assert (status, answer["error"]["code"]) == (503, "not_ready")


def is_up(pool: Pool) -> bool:
    try:
        return pool.get("/livez")[0] == 200
    except OSError:
        return False


def test_a_request_waits_for_the_model(tmp_path: Path) -> None:
    with Pool(tmp_path, *SPEAKS, "--", "--load-s", "1") as pool:
        wait_until(lambda: is_up(pool), 20, "an open port")
        assert pool.post(PATH, body_of("ab"))[1]["choices"][0]["text"] == "ababa"


def test_a_request_whose_engine_dies_is_answered_by_the_next(tmp_path: Path) -> None:
    with Pool(tmp_path, *SPEAKS, "--", "--token-s", "0.02") as pool:
        pool.wait_ready()
        clients = [pool.send(PATH, body_of("ab", max_tokens=50)) for _ in range(3)]
        wait_until(lambda: running(pool) == 3, 5, "running requests")
        # What kills every engine it meets is told so in the end.
        assert pool.post(PATH, body_of("die"))[0] == 503
        assert [read(client)[0] for client in clients] == [200] * 3


def test_a_stream_whose_engine_dies_ends_with_an_error(tmp_path: Path) -> None:
    with Pool(tmp_path, *SPEAKS, "--", "--token-s", "0.02") as pool:
        pool.wait_ready()
        client = pool.send(PATH, body_of("ab", max_tokens=500, stream=True))
        wait_until(lambda: running(pool) == 1, 5, "a running stream")
        pool.post("/infer", {"instances": "die"})
        status, events = read(client)  # whole: the end of the last chunk is there
        assert status == 200
        assert b'data: {"error"' in events
        assert b"[DONE]" not in events


def test_streams_that_run_are_finished_when_the_pool_ends(tmp_path: Path) -> None:
    with Pool(tmp_path, *SPEAKS, "--", "--token-s", "0.02") as pool:
        pool.wait_ready()
        client = pool.send(PATH, body_of("ab", max_tokens=60, stream=True))
        wait_until(lambda: running(pool) == 1, 5, "a running stream")
        pool.process.send_signal(signal.SIGTERM)
        assert b"[DONE]" in read(client)[1]
        assert pool.process.wait(20) == 0


def test_a_list_survives_its_workers_death(tmp_path: Path) -> None:
    with Pool(tmp_path, *SPEAKS, "--workers", "2", "--", "--token-s", "0.02") as pool:
        pool.wait_ready(workers=2)
        prompts = [f"{index:02}" for index in range(40)]
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            answer = threads.submit(pool.post, PATH, body_of(prompts, max_tokens=20))
            wait_until(lambda: running(pool) == 8, 5, "two busy workers")
            os.kill(pool.workers()[0]["pid"], signal.SIGKILL)
        status, merged = answer.result()
        assert status == 200
        assert [choice["text"][:2] for choice in merged["choices"]] == prompts
