"""The short version of all that a pool on a real Ray does; the other files have it at length."""

from __future__ import annotations

import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from tests.pool import SCRIPTED, Pool, is_alive, wait_until
from tests.ray_pool.cluster import START_S, own_network, ray_pool

pytestmark = [pytest.mark.server, pytest.mark.timeout(180)]


def stream(pool: Pool, max_tokens: int) -> str:
    with openai.OpenAI(base_url=f"{pool.url}/v1", api_key="-", max_retries=0) as client:
        chunks = client.completions.create(
            model="M", prompt="ab", max_tokens=max_tokens, stream=True
        )
        return "".join(chunk.choices[0].text for chunk in chunks)


def test_a_pool_answers_streams_and_when_stopped_what_it_let_in_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    flags = (*SCRIPTED, "--", "--token-s", "0.02", "--slots", "2")
    with own_network(), ray_pool(tmp_path, *flags) as pool, ThreadPoolExecutor(8) as threads:
        pool.wait_ready(deadline_s=START_S)
        assert pool.infer(["ab", "cd"], max_tokens=4) == ["abab", "cdcd"]
        streams = [threads.submit(stream, pool, 100) for _ in range(2)]
        wait_until(lambda: _inflight(pool) == 2, 10, "two streams")
        waiting = [threads.submit(pool.infer, "ab", max_tokens=20) for _ in range(4)]
        time.sleep(0.5)  # they are in Serve's queue, which nothing tells
        pids = pool.pids()
        pool.process.send_signal(signal.SIGTERM)
        wait_until(lambda: _is_draining(pool), 5, "a shut door")
        assert [found.result() for found in streams] == ["ab" * 50] * 2
        assert [found.result() for found in waiting] == [["ab" * 10]] * 4
        assert pool.process.wait(30) == 0
        wait_until(lambda: not any(map(is_alive, pids)), 5, "the end of all processes")


def _inflight(pool: Pool) -> int:
    return sum(worker["inflight"] for worker in pool.workers())


def _is_draining(pool: Pool) -> bool:
    """Asked with half of a request, which an open door waits for."""
    with socket.create_connection(("127.0.0.1", pool.port), timeout=0.2) as client:
        client.sendall(b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        try:
            return b'"draining"' in client.recv(4096)
        except TimeoutError:
            return False
