"""Whatever a client sends is answered, and never with a failure of ours."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pool import SCRIPTED, Pool, wait_until
from tests.server.bodies import raw_bodies, shorten
from tests.server.engines import NAMES
from tests.server.hostile import cases

pytestmark = [pytest.mark.server, pytest.mark.timeout(3600)]

NUM_CASES = [2_000, pytest.param(100_000, marks=pytest.mark.slow)]
MAX_GROWTH = 8 << 20


@pytest.fixture(scope="module", name="pool")
def _pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    flags = (*SCRIPTED, "--", "--token-s", "0.00001", "--context", "64", "--slots", "8")
    with Pool(tmp_path_factory.mktemp("fuzz"), *flags) as pool:
        yield pool.wait_ready()


def schemas(pool: Pool) -> dict[str, Any]:
    """The body of each route that takes one."""
    status, document = pool.get("/openapi.json")
    assert status == 200
    return {
        path: methods["post"]["requestBody"]["content"]["application/json"]["schema"]
        for path, methods in document["paths"].items()
        if "post" in methods
    }


def ask(connection: http.client.HTTPConnection, path: str, raw: bytes) -> None:
    """Fails unless the answer is one, or a mistake of the client's in the one shape."""
    connection.request("POST", path, raw, {"Content-Type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    assert response.status < 500, (path, raw, content)
    if response.status >= 400:
        assert set(json.loads(content)["error"]) == {"message", "type", "param", "code"}


def memory(pool: Pool) -> int:
    return int(psutil.Process(pool.workers()[0]["pid"]).memory_full_info().uss)


@pytest.mark.parametrize("count", NUM_CASES)
def test_nothing_that_is_sent_is_our_fault(pool: Pool, count: int) -> None:
    bodies = st.one_of(
        [st.tuples(st.just(path), raw_bodies(schema)) for path, schema in schemas(pool).items()]
    )
    worker = pool.workers()[0]["pid"]
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", pool.port, 60)) as connection:

        def send(max_examples: int) -> None:
            chosen = settings(
                max_examples=max_examples,
                deadline=None,
                database=None,
                derandomize=count < 10_000,
                suppress_health_check=list(HealthCheck),
            )
            chosen(given(bodies)(lambda case: ask(connection, *case)))()

        send(count // 4)  # whatever is imported, made or made larger on first use
        before = memory(pool)
        send(count)
        grown = memory(pool) - before
    print(f"{count} bodies; the worker grew by {grown >> 10} KiB")
    assert pool.workers()[0]["pid"] == worker
    assert grown < MAX_GROWTH


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("engine", NAMES)
def test_no_real_engine_fails_by_what_is_sent(
    engine: str, shared_pool: Callable[[str], Pool]
) -> None:
    pool = shared_pool(engine)
    bodies = st.one_of(
        [st.tuples(st.just(path), raw_bodies(schema)) for path, schema in schemas(pool).items()]
    )
    worker = pool.workers()[0]["pid"]
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", pool.port, 300)) as connection:

        @settings(
            max_examples=1000,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(bodies)
        def send(case: tuple[str, bytes]) -> None:
            ask(connection, case[0], shorten(*case))

        send()
    assert pool.workers()[0]["pid"] == worker
    assert "Paris" in pool.infer("The capital of France is", temperature=0, max_tokens=12)[0]


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("engine", NAMES)
def test_no_real_engine_fails_by_what_is_meant_to_hurt(
    engine: str, shared_pool: Callable[[str], Pool]
) -> None:
    pool = shared_pool(engine)
    worker = pool.workers()[0]["pid"]
    for path, body in cases():
        # A connection each: one that a failure closes must not fail the next.
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", pool.port, 120)) as client:
            ask(client, path, json.dumps(body).encode())
    wait_until(lambda: pool.workers()[0]["running"] == 0, 60, "an idle worker")
    assert pool.workers()[0]["pid"] == worker
    assert "Paris" in pool.infer("The capital of France is", temperature=0, max_tokens=12)[0]


def test_the_pool_still_answers(pool: Pool, tmp_path: Path) -> None:
    assert pool.infer("ab", max_tokens=4) == ["abab"]
    assert pool.workers()[0]["running"] == 0
