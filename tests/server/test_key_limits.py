"""The limits of a key hold over all workers, and for this key alone."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import itertools
import json
import os
import signal
import statistics
import time
import urllib.request
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.pool import SCRIPTED, Pool, wait_until
from tests.scrape import parse, total

pytestmark = pytest.mark.server

NUM_KEYS = 40
OPERATOR = "operator"  # a key that only looks
LIMIT = 4
BUDGET = 100
WORKERS = ("--workers", "3")
ENGINE = ("--", "--token-s", "0.01", "--slots", "1")
PATHS = ("/infer", "/v1/completions")
LONG = 200  # tokens, and 2 s


class Client:
    """A kept-alive connection that sends one key."""

    def __init__(self, pool: Pool, key: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", pool.port, timeout=30)
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.leave()

    def leave(self) -> None:
        self._connection.close()

    def send(self, num_tokens: int = LONG, prompt: Any = "ab", path: str = "/infer") -> Client:
        """Ask, and do not wait for the answer."""
        params = {"max_tokens": num_tokens}
        body = {"instances": prompt, "params": params, "detail": True}
        if path != "/infer":
            body = {"model": "M", "prompt": prompt, **params}
        self._connection.request("POST", path, json.dumps(body), self._headers)
        return self

    def stream(self, num_tokens: int = LONG) -> http.client.HTTPResponse:
        """Ask for a stream; returns when it has begun."""
        body = {"model": "M", "prompt": "ab", "max_tokens": num_tokens, "stream": True}
        self._connection.request("POST", "/v1/completions", json.dumps(body), self._headers)
        response = self._connection.getresponse()
        assert response.status == 200
        assert response.readline().startswith(b"data: {")
        return response

    def answer(self) -> http.client.HTTPResponse:
        return self._connection.getresponse()

    def status(self) -> int:
        """Of the answer, which is read to its end."""
        response = self.answer()
        response.read()
        return response.status

    def worker(self) -> int:
        """Which worker answers a short request: on an idle pool the one that reads it."""
        response = self.send(num_tokens=1).answer()
        assert response.status == 200
        return int(json.load(response)[0]["replica"])


@contextlib.contextmanager
def clients(pool: Pool, key: str, count: int) -> Iterator[list[Client]]:
    with contextlib.ExitStack() as opened:
        yield [opened.enter_context(Client(pool, key)) for _ in range(count)]


def look(pool: Pool) -> list[dict[str, Any]]:
    return list(pool.get("/pool", Authorization=f"Bearer {OPERATOR}")[1]["workers"])


def await_inflight(pool: Pool, count: int) -> None:
    wait_until(
        lambda: sum(worker["inflight"] for worker in look(pool)) == count,
        10,
        f"{count} requests in flight",
    )


def send_batches(pool: Pool, held: list[Client], path: str) -> None:
    """One after the other, each when the one before has arrived: the first one's jobs fill all
    slots for a second, so the others wait, and are seen to."""

    def num_inflight() -> int:
        return sum(worker["inflight"] for worker in look(pool))

    for client in held:
        before = num_inflight()
        client.send(num_tokens=100, prompt=["ab"] * 3, path=path)
        wait_until(lambda: all(worker["running"] for worker in look(pool)), 10, "busy workers")
        wait_until(lambda before=before: num_inflight() > before, 10, "one batch more")


def probe(pool: Pool, key: str, path: str = "/infer") -> int:
    """The status of a short request."""
    with Client(pool, key) as client:
        return client.send(num_tokens=1, path=path).status()


def refusal(pool: Pool, key: str) -> tuple[dict[str, Any], str | None]:
    """The error that answers a request, and Retry-After."""
    with Client(pool, key) as client:
        response = client.send(num_tokens=1).answer()
        assert response.status == 429
        return json.load(response)["error"], response.headers["Retry-After"]


def line_of(pool: Pool, request_id: str) -> dict[str, str]:
    """The access line of a request."""

    def find() -> str:
        return next((x for x in pool.log().splitlines() if f"id={request_id} " in x), "")

    words = wait_until(find, 10, f"the line of {request_id}").split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def tokens_used(pool: Pool, key: str) -> int:
    """Of a key that has used its tokens up, as the refusal tells."""
    words = str(refusal(pool, key)[0]["message"]).split()
    return int(words[words.index("tokens") - 1])


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def start(folder: Path, *flags: str) -> Pool:
    file = folder / "keys"
    file.write_text("\n".join([OPERATOR, *(f"key{number}" for number in range(NUM_KEYS))]))
    return Pool(folder, *SCRIPTED, *WORKERS, "--api_key_file", str(file), *flags, *ENGINE)


@pytest.fixture(scope="module", name="keys")
def _keys() -> Iterator[str]:
    return iter([f"key{number}" for number in range(NUM_KEYS)])


@pytest.fixture(name="key")
def _key(keys: Iterator[str]) -> str:
    """One that nobody has used."""
    return next(keys)


@pytest.fixture(name="other")
def _other(keys: Iterator[str]) -> str:
    """Another."""
    return next(keys)


# Requests in flight.


@pytest.fixture(scope="module", name="pool")
def _pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Three workers with a slot each: of a key's four requests one waits."""
    folder = tmp_path_factory.mktemp("concurrency")
    with start(folder, "--key_concurrency", str(LIMIT)) as pool:
        yield pool.wait_ready(workers=3, Authorization=f"Bearer {OPERATOR}")


def test_a_key_has_its_limit_over_all_workers_in_flight_or_waiting(pool: Pool, key: str) -> None:
    with clients(pool, key, LIMIT) as held:
        for client in held:
            client.send()
        await_inflight(pool, LIMIT)
        assert probe(pool, key) == 429
        assert [client.status() for client in held] == [200] * LIMIT


def test_of_many_requests_at_once_never_more_than_the_limit_are_let_in(
    pool: Pool, key: str
) -> None:
    with clients(pool, key, 40) as crowd:
        for client in crowd:
            client.send(num_tokens=100)
        statuses = [client.status() for client in crowd]
    assert 0 < statuses.count(200) <= LIMIT
    assert statuses.count(429) == 40 - statuses.count(200)


def test_a_request_that_is_handed_over_counts_once(pool: Pool, key: str) -> None:
    with clients(pool, key, 3 * LIMIT) as opened:
        owned = [(client.worker(), client) for client in opened]
        busiest = statistics.mode(worker for worker, _ in owned)
        held = [client for worker, client in owned if worker == busiest][:LIMIT]
        for client in held:
            client.send()
        await_inflight(pool, LIMIT)
        assert probe(pool, key) == 429
        assert [client.status() for client in held] == [200] * LIMIT


def test_another_key_is_let_in(pool: Pool, key: str, other: str) -> None:
    with clients(pool, key, LIMIT) as held:
        for client in held:
            client.send(num_tokens=100)
        await_inflight(pool, LIMIT)
        assert probe(pool, key) == 429
        assert probe(pool, other) == 200


def test_the_refusal_says_which_limit_and_when_to_come_again(pool: Pool, key: str) -> None:
    with clients(pool, key, LIMIT) as held:
        for client in held:
            client.send()
        await_inflight(pool, LIMIT)
        error, retry_after = refusal(pool, key)
    await_inflight(pool, 0)
    assert retry_after == "1"
    assert error == {
        "message": f"this API key has {LIMIT} requests in flight or waiting, and may have {LIMIT} "
        "(--key_concurrency); wait for one of them to end",
        "type": "rate_limit_error",
        "param": None,
        "code": "key_limit",
    }


@pytest.mark.parametrize("path", PATHS)
def test_the_refusal_is_found_in_the_log_and_told_apart_in_the_metrics(
    pool: Pool, key: str, path: str
) -> None:
    def refused(reason: str) -> float:
        raw = urllib.request.Request(f"{pool.url}/metrics", headers=bearer(OPERATOR))
        with urllib.request.urlopen(raw, timeout=10) as answer:
            samples = parse(answer.read().decode())
        return total(samples, "gpupool_requests_total", route=path, status="429", reason=reason)

    before = {reason: refused(reason) for reason in ("key_limit", "full")}
    with clients(pool, key, LIMIT) as held, Client(pool, key) as other:
        for client in held:
            client.send()
        await_inflight(pool, LIMIT)
        response = other.send(num_tokens=1, path=path).answer()
        assert response.status == 429
        line = line_of(pool, response.headers["X-Request-Id"])
    assert (line["route"], line["status"], line["client"]) == (path, "429", "127.0.0.1")
    assert line["key"] == sha256(key.encode()).hexdigest()[:8]
    assert refused("key_limit") == before["key_limit"] + 1
    assert refused("full") == before["full"]
    await_inflight(pool, 0)


def test_probes_and_the_list_of_models_have_no_limit(pool: Pool, key: str) -> None:
    with clients(pool, key, LIMIT) as held:
        for client in held:
            client.send()
        await_inflight(pool, LIMIT)
        header = {"Authorization": f"Bearer {key}"}
        for path in ("/livez", "/readyz", "/pool", "/v1/models"):
            assert pool.get(path, **header)[0] == 200
    await_inflight(pool, 0)


def test_answers_give_back_what_the_key_may(pool: Pool, key: str) -> None:
    for _ in range(3):
        with clients(pool, key, LIMIT) as held:
            for client in held:
                client.send(num_tokens=3)
            assert [client.status() for client in held] == [200] * LIMIT


def test_who_keeps_to_the_limit_is_never_refused(pool: Pool, key: str) -> None:
    """Whoever has read an answer may ask again at once, on whatever connection."""

    def ask(number: int) -> list[int]:
        return [probe(pool, key, path=PATHS[number % 2]) for _ in range(40)]

    with concurrent.futures.ThreadPoolExecutor(LIMIT) as threads:
        assert set(itertools.chain(*threads.map(ask, range(LIMIT)))) == {200}


def test_clients_that_leave_give_back_what_the_key_may(pool: Pool, key: str) -> None:
    with clients(pool, key, LIMIT) as held:
        for client in held:
            client.send()
        await_inflight(pool, LIMIT)
    await_inflight(pool, 0)
    with clients(pool, key, LIMIT) as again:
        for client in again:
            client.send(num_tokens=3)
        assert [client.status() for client in again] == [200] * LIMIT


def test_requests_that_fail_give_back_what_the_key_may(pool: Pool, key: str) -> None:
    with Client(pool, key) as client:
        for _ in range(2 * LIMIT):
            assert client.send(prompt=[]).status() == 400


def test_a_batch_over_all_workers_counts_once(pool: Pool, key: str) -> None:
    with clients(pool, key, LIMIT) as held:
        send_batches(pool, held, "/infer")
        assert probe(pool, key) == 429
        assert [client.status() for client in held] == [200] * LIMIT


def test_a_list_of_prompts_of_v1_counts_once(pool: Pool, key: str) -> None:
    with clients(pool, key, LIMIT) as held:
        send_batches(pool, held, "/v1/completions")
        assert probe(pool, key) == 429
        assert [client.status() for client in held] == [200] * LIMIT


def test_a_stream_counts_until_its_end(pool: Pool, key: str) -> None:
    with clients(pool, key, LIMIT) as held:
        *rest, last = held
        streams = [client.stream() for client in rest]
        last.send()
        await_inflight(pool, LIMIT)
        assert probe(pool, key) == 429
        assert all(b"[DONE]" in stream.read() for stream in streams)
        assert probe(pool, key) == 200


@pytest.mark.quiet
def test_the_refusal_comes_at_once(pool: Pool, key: str) -> None:
    waits_s = []
    with clients(pool, key, LIMIT) as held:
        for client in held:
            client.send()
        await_inflight(pool, LIMIT)
        for _ in range(9):
            began = time.monotonic()
            assert probe(pool, key) == 429
            waits_s.append(time.monotonic() - began)
    await_inflight(pool, 0)
    print(f"median {statistics.median(waits_s) * 1000:.1f} ms, worst {max(waits_s) * 1000:.1f} ms")
    assert statistics.median(waits_s) <= 0.05


def test_a_killed_worker_gives_back_what_its_requests_had(pool: Pool, key: str) -> None:
    with clients(pool, key, LIMIT) as held:
        for client in held:
            client.send(num_tokens=998)
        await_inflight(pool, LIMIT)
        victim = max(look(pool), key=lambda worker: int(worker["inflight"]))
        os.kill(victim["pid"], signal.SIGKILL)
        await_inflight(pool, LIMIT - victim["inflight"])
        with clients(pool, key, victim["inflight"]) as again:
            for client in again:
                client.send()
            await_inflight(pool, LIMIT)
            assert probe(pool, key) == 429
    pool.wait_ready(workers=3, Authorization=f"Bearer {OPERATOR}")
    await_inflight(pool, 0)


# Tokens within a minute.


@pytest.fixture(scope="module", name="budgeted")
def _budgeted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    folder = tmp_path_factory.mktemp("tokens")
    with start(folder, "--key_tokens_per_minute", str(BUDGET)) as pool:
        yield pool.wait_ready(workers=3, Authorization=f"Bearer {OPERATOR}")


def use(pool: Pool, key: str, **asked: Any) -> None:
    with Client(pool, key) as client:
        assert client.send(**asked).status() == 200


def test_a_key_that_has_used_its_tokens_is_refused_and_no_other(
    budgeted: Pool, key: str, other: str
) -> None:
    use(budgeted, key, prompt="a" * 10, num_tokens=BUDGET - 11)
    assert probe(budgeted, key) == 200  # one was left
    error, retry_after = refusal(budgeted, key)
    assert error["code"] == "key_limit"
    assert "--key_tokens_per_minute" in error["message"]
    assert 55 <= int(retry_after or 0) <= 65
    assert probe(budgeted, other) == 200


def test_tokens_add_up_over_all_workers(budgeted: Pool, key: str) -> None:
    with clients(budgeted, key, 9) as asking:
        for client in asking:
            client.send(prompt="ab", num_tokens=10)
        assert [client.status() for client in asking] == [200] * 9
    assert tokens_used(budgeted, key) == 9 * 12


@pytest.mark.parametrize("path", PATHS)
def test_tokens_of_a_batch_count_once(budgeted: Pool, key: str, path: str) -> None:
    use(budgeted, key, prompt=["ab"] * 9, num_tokens=20, path=path)
    assert tokens_used(budgeted, key) == 9 * 22


def test_tokens_of_a_stream_count(budgeted: Pool, key: str) -> None:
    with Client(budgeted, key) as client:
        client.stream(num_tokens=BUDGET).read()
    assert tokens_used(budgeted, key) == BUDGET + 2


def test_a_stream_that_its_client_leaves_counts_what_had_come(budgeted: Pool, key: str) -> None:
    """Whoever reads all but the end of a stream would have it for nothing."""
    with Client(budgeted, key) as client:
        stream = client.stream(num_tokens=3 * BUDGET)
        for _ in range(2 * BUDGET):  # an event is a line and an empty one
            stream.readline()
    await_inflight(budgeted, 0)
    assert BUDGET <= tokens_used(budgeted, key) < 2 * BUDGET


def test_a_request_that_its_client_leaves_counts_its_prompt(budgeted: Pool, key: str) -> None:
    with Client(budgeted, key) as client:
        client.send(prompt="a" * BUDGET)
        await_inflight(budgeted, 1)
    await_inflight(budgeted, 0)
    assert tokens_used(budgeted, key) == BUDGET


# The start.


@pytest.mark.parametrize("flag", ["--key_concurrency", "--key_tokens_per_minute"])
def test_a_limit_of_keys_without_keys_is_refused_at_the_start(tmp_path: Path, flag: str) -> None:
    with Pool(tmp_path, *SCRIPTED, flag, "4") as pool:
        assert pool.process.wait(30) == 2
    variable = f"GPUPOOL_{flag.removeprefix('--').upper()}"
    assert pool.log().splitlines() == [
        f"gpupool: error: {flag} ({variable}) is 4, but the pool has no API keys; give some with "
        "--api_key or --api_key_file, or leave the limit out"
    ]
