"""The examples of deploy/nginx, in a real nginx before real pools."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from gpupool import errors
from gpupool.settings import Settings
from tests.commands import TALKER
from tests.front import FOLDER, Front
from tests.pool import Pool, free_port, wait_until
from tests.server.load import Load

pytestmark = [pytest.mark.server, pytest.mark.timeout(120)]

ONE, SEVERAL = "one-pool.conf", "several-pools.conf"
EXAMPLES = (ONE, SEVERAL)
JSON = {"Content-Type": "application/json"}
TALKS = ("--model_name", "M", "--infer_type", TALKER)


def start(stack: ExitStack, folder: Path, *flags: str) -> Pool:
    """A pool that need not be ready yet."""
    return stack.enter_context(Pool(folder, *TALKS, *flags))


class Site:
    """Two pools, nginx before both, and another nginx before the first alone."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        slow = ("--", "--token-s", "0.02")
        self.pools = [start(stack, folder, *slow) for _ in range(2)]
        for pool in self.pools:
            pool.wait_ready()
        ports = [pool.port for pool in self.pools]
        for name in EXAMPLES:
            (folder / name).mkdir()
        self.several = stack.enter_context(Front(folder / SEVERAL, SEVERAL, *ports))
        self.one = stack.enter_context(Front(folder / ONE, ONE, ports[0]))

    def client(self, example: str) -> Pool:
        return {ONE: self.one, SEVERAL: self.several}[example].client


@pytest.fixture(scope="module", name="site")
def _site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack, tmp_path_factory.mktemp("nginx"))


@pytest.fixture(params=EXAMPLES, name="client")
def _client(site: Site, request: pytest.FixtureRequest) -> Pool:
    return site.client(request.param)


@contextmanager
def asked(
    client: Pool, path: str, body: dict[str, Any], **headers: str
) -> Iterator[http.client.HTTPResponse]:
    """The answer to a POST, as it comes."""
    with closing(http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)) as connection:
        connection.request("POST", path, json.dumps(body), JSON | headers)
        with connection.getresponse() as response:
            yield response


def num_answered(pool: Pool) -> int:
    return sum(worker["served"] for worker in pool.workers())


def await_answered(pool: Pool, number: int) -> None:
    """An answer is counted just after it has left."""
    wait_until(lambda: num_answered(pool) >= number, 5, f"{number} answers")
    assert num_answered(pool) == number


def num_inflight(pool: Pool) -> int:
    return sum(worker["inflight"] for worker in pool.workers())


@pytest.mark.parametrize("example", EXAMPLES)
def test_nginx_takes_the_example_as_it_is(example: str, tmp_path: Path) -> None:
    done = Front(tmp_path, example, 1, 2).check()
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.replace('the "user" directive makes sense only', "")


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_limits_fit_those_of_a_pool(example: str) -> None:
    """Body size as the pool's; idle connections are closed by nginx first; the pool is the first
    to give a request up; and no pool says 504, which the gates have for themselves."""
    default = {name: field.default for name, field in Settings.model_fields.items()}
    text = (FOLDER / example).read_text()
    assert f"client_max_body_size {default['max_body_bytes'] >> 20}m;" in text
    kept = [int(seconds) for seconds in re.findall(r"keepalive_timeout (\d+)s", text)]
    assert kept
    assert max(kept) < default["keepalive_s"]
    proxy = (FOLDER / "gpupool_proxy.conf").read_text()
    [days] = re.findall(r"proxy_read_timeout (\d+)d", proxy)
    assert int(days) * 86400 > default["max_wait_s"] + default["stall_timeout_s"]
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert 504 not in [getattr(kind, "status", None) for kind in kinds]


def test_a_stream_arrives_token_by_token(client: Pool) -> None:
    arrivals, last = [], b""
    body = {"prompt": "x|" + "token" * 6, "max_tokens": 30, "stream": True}
    with asked(client, "/v1/completions", body) as response:
        while line := response.readline():
            if line.startswith(b"data: {"):
                arrivals.append(time.monotonic())
            last = line.strip() or last
    assert last == b"data: [DONE]"
    assert len(arrivals) >= 30
    # 30 steps of 20 ms; buffers would let them out a handful at a time.
    gaps = [later - earlier for earlier, later in zip(arrivals, arrivals[1:], strict=False)]
    assert len([gap for gap in gaps if gap > 0.005]) > 15


def test_a_client_that_leaves_ends_its_request(site: Site, client: Pool) -> None:
    left = client.send_infer("abc", max_tokens=900)
    wait_until(lambda: sum(map(num_inflight, site.pools)) == 1, 10, "a running request")
    left.close()
    wait_until(lambda: sum(map(num_inflight, site.pools)) == 0, 5, "its end")


def test_a_large_body_passes_and_a_larger_one_is_refused_as_json(client: Pool) -> None:
    """Where it goes through a file of nginx, too."""
    limit = Settings.model_fields["max_body_bytes"].default
    many = {"instances": ["x" * 900] * (7 * (1 << 20) // 900), "params": {"max_tokens": 0}}
    status, answer = client.post("/infer", many)
    assert (status, answer["error"]["param"]) == (400, "max_tokens")  # so it was read whole
    status, answer = client.post("/infer", b" " * (limit + 1))
    assert (status, answer["error"]["type"]) == (413, "invalid_request_error")


def id_of_answer(client: Pool, **headers: str) -> str:
    with asked(client, "/v1/completions", {"prompt": "x|y"}, **headers) as response:
        assert response.status == 200, response.read()
        return str(response.headers["X-Request-Id"])


@pytest.mark.parametrize("example", EXAMPLES)
def test_one_id_is_in_the_answer_and_in_both_logs(site: Site, example: str) -> None:
    front = {ONE: site.one, SEVERAL: site.several}[example]
    given = id_of_answer(front.client, **{"X-Request-Id": f"mine-{example}"})
    made = id_of_answer(front.client)
    assert given == f"mine-{example}"
    unfit = id_of_answer(front.client, **{"X-Request-Id": f"two words of {example}"})
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert re.fullmatch("[0-9a-f]{32}", unfit)
    for one in (given, made, unfit):
        wait_until(lambda one=one: f" id={one} " in front.log_path.read_text(), 5, "nginx's line")
        wait_until(lambda one=one: f" id={one} " in logs_of(site), 5, "the pool's line")


def logs_of(site: Site) -> str:
    return "".join(pool.log() for pool in site.pools)


def test_the_pool_with_less_to_do_is_asked(site: Site) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(site.several.client.infer, "ab", max_tokens=50) for _ in range(8)]
        found = [0, 0]
        while not all(answer.done() for answer in answers):
            found = list(map(max, found, map(num_inflight, site.pools)))
            time.sleep(0.02)
    assert found == [4, 4]


def test_headers_that_a_pool_refuses_are_its_400(client: Pool) -> None:
    """And no fault of nginx, which asks whether the pool is ready without them."""
    status, answer = client.get(
        "/readyz", **{"X-Forwarded-Proto": "https", "X-Forwarded-Ssl": "no"}
    )
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("path", ["/pool", "/metrics"])
def test_what_tells_of_one_pool_is_not_asked_of_several(site: Site, path: str) -> None:
    status, answer = site.several.client.get(path)
    assert (status, answer["error"]["type"]) == (404, "not_found_error")


def test_a_reload_under_load_loses_nothing(site: Site) -> None:
    """nginx keeps its connections to the pools, whose workers all go."""
    client = site.several.client
    before = [worker["pid"] for pool in site.pools for worker in pool.workers()]
    with Load(client, 4, max_tokens=3) as load:
        wait_until(lambda: load.statuses[200] >= 20, 10, "the first answers")
        for pool in site.pools:
            pool.process.send_signal(signal.SIGHUP)
        wait_until(lambda: is_renewed(site, before), 30, "other workers")
        counted = load.statuses[200]
        wait_until(lambda: load.statuses[200] >= counted + 20, 10, "answers of the new ones")
    assert load.faults == []
    assert set(load.statuses) == {200}


def is_renewed(site: Site, before: list[int]) -> bool:
    now = [worker for pool in site.pools for worker in pool.workers()]
    return len(now) == 2 and all(w["state"] == "ready" and w["pid"] not in before for w in now)


def answered(client: Pool, **params: Any) -> tuple[int, Any]:
    return client.post("/infer", {"instances": ["abc"], "params": params})


def test_a_refused_request_is_told_and_sent_nowhere_else(tmp_path: Path) -> None:
    """A pool that is full has its queue behind it: its 429 is the client's to heed."""
    with ExitStack() as stack:
        limit = ("--api_key", "key", "--key_concurrency", "1", "--max_body_bytes", "4096")
        limit += ("--", "--token-s", "0.02")
        pools = [start(stack, tmp_path, *limit) for _ in range(2)]
        key = {"Authorization": "Bearer key"}
        for pool in pools:
            pool.wait_ready(**key)
        ports = [pool.port for pool in pools]
        front = stack.enter_context(Front(tmp_path, SEVERAL, *ports))
        body = {"instances": ["abc"], "params": {"max_tokens": 900}}
        threads = stack.enter_context(ThreadPoolExecutor(2))
        running = [threads.submit(front.client.post, "/infer", body, **key) for _ in range(2)]
        wait_until(
            lambda: [sum(w["inflight"] for w in pool.workers(**key)) for pool in pools] == [1, 1],
            10,
            "a request at each",
        )
        with asked(front.client, "/infer", body, **key) as response:
            error = json.load(response)["error"]
            assert (response.status, error["code"]) == (429, "key_limit")
            assert int(response.headers["Retry-After"]) >= 1
        assert [pool.log().count("status=429") for pool in pools].count(0) == 1
        own, passed = (at.post("/infer", b" " * 5000, **key) for at in (pools[0], front.client))
        assert own[0] == 413
        assert passed == own  # in the pool's own words
        for pool in pools:
            kill(pool)
        assert [one.result()[0] for one in running] == [502, 502]


def kill(pool: Pool) -> None:
    """Master, workers and all, at once."""
    for pid in pool.pids():
        os.kill(pid, signal.SIGKILL)
    pool.process.wait(10)


def test_what_a_killed_pool_was_asked_is_not_sent_twice(site: Site, tmp_path: Path) -> None:
    """Not before its first byte, and not in a stream; what comes after goes to the other."""
    with ExitStack() as stack:
        lives = site.pools[0]
        dies = start(stack, tmp_path, "--", "--token-s", "0.02").wait_ready()
        front = stack.enter_context(Front(tmp_path, SEVERAL, dies.port, lives.port))
        before = num_answered(lives)
        threads = stack.enter_context(ThreadPoolExecutor(4))
        begun = threading.Semaphore(0)
        both = (dies, lives)
        whole = [threads.submit(answered, front.client, max_tokens=100) for _ in range(2)]
        wait_until(lambda: [*map(num_inflight, both)] == [1, 1], 10, "one at each")
        streams = [threads.submit(read_stream, front.client, begun) for _ in range(2)]
        wait_until(lambda: [*map(num_inflight, both)] == [2, 2], 10, "two at each")
        assert all(begun.acquire(timeout=10) for _ in streams)
        kill(dies)
        later = [answered(front.client, max_tokens=1)[0] for _ in range(6)]
        assert later == [200] * 6
        found = [one.result()[0] for one in whole]
        ends = [one.result() for one in streams]
        await_answered(lives, before + 2 + len(later))
    assert sorted(found) == [200, 502]
    assert sorted(ends) == ["cut", "whole"]


def test_a_pool_that_is_gone_before_it_is_sent_anything_leads_to_the_other(
    site: Site, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:
        told = threads.submit(say_ready_and_go, listener)
        ports = (listener.getsockname()[1], site.pools[0].port)
        with Front(tmp_path, SEVERAL, *ports) as front:
            statuses = [answered(front.client, max_tokens=1)[0] for _ in range(2)]
            assert told.result(10) == b"GET /readyz"
    assert statuses == [200, 200]


def say_ready_and_go(listener: socket.socket) -> bytes:
    """As a pool that dies between its /readyz and the request; what it was asked."""
    connection, _ = listener.accept()
    with connection:
        asked_for = connection.recv(65536)
        listener.close()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
    return asked_for.partition(b" HTTP/")[0]


def read_stream(client: Pool, begun: threading.Semaphore) -> str:
    """How a stream ends: whole, or cut so that the client sees it."""
    body = {"prompt": "x|" + "y" * 100, "max_tokens": 100, "stream": True}
    try:
        with asked(client, "/v1/completions", body) as response:
            first = response.readline()
            begun.release()
            return "whole" if b"data: [DONE]" in first + response.read() else "ended"
    except (http.client.HTTPException, OSError):
        return "cut"


def test_a_pool_that_loads_leads_to_the_other_and_holds_what_no_other_can_answer(
    site: Site, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        loads = start(stack, tmp_path, "--", "--load-s", "3")
        ready = site.pools[0]
        before = num_answered(ready)
        several = stack.enter_context(Front(tmp_path, SEVERAL, loads.port, ready.port))
        (tmp_path / "alone").mkdir()
        alone = stack.enter_context(Front(tmp_path / "alone", SEVERAL, loads.port, free_port()))
        wait_until(lambda: answers(loads), 10, "a pool that loads")
        assert [answered(several.client, max_tokens=1)[0] for _ in range(10)] == [200] * 10
        assert loads.workers()[0]["state"] == "loading"
        await_answered(ready, before + 10)
        assert several.client.get("/readyz")[0] == 200
        assert alone.client.get("/readyz")[0] == 503
        assert answered(alone.client, max_tokens=1)[0] == 200  # once it is loaded
        await_answered(loads, 1)


def answers(pool: Pool) -> bool:
    try:
        return pool.get("/livez")[0] == 200
    except OSError:
        return False


def test_without_any_pool_the_error_is_json(tmp_path: Path) -> None:
    with Front(tmp_path, SEVERAL, free_port(), free_port()) as front:
        status, answer = answered(front.client)
        assert (status, answer["error"]["type"]) == (502, "unavailable_error")
