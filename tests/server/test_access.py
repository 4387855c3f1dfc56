"""The log of a real pool: JSON in every line, one line for each request."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.pool import SCRIPTED, Pool, wait_until

pytestmark = pytest.mark.server


@pytest.fixture(scope="module", name="pool")
def _pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    flags = (*SCRIPTED, "--log_format", "json", "--workers", "2", "--", "--token-s", "0.02")
    with Pool(tmp_path_factory.mktemp("access"), *flags) as pool:
        yield pool.wait_ready(workers=2)


def lines(pool: Pool) -> list[dict[str, Any]]:
    """Every whole line: one that is no JSON fails here."""
    return [json.loads(line) for line in pool.log().splitlines(keepends=True) if line[-1] == "\n"]


def access(pool: Pool, request_id: str) -> dict[str, Any]:
    """The one line of a request."""

    def find() -> list[dict[str, Any]]:
        return [line for line in lines(pool) if line.get("id") == request_id]

    [line] = wait_until(find, 10, f"the line of {request_id}")
    assert line["message"] == "access"
    return dict(line)


def test_every_line_is_json_from_the_first(pool: Pool) -> None:
    found = lines(pool)
    assert "Starting gunicorn" in found[0]["message"]
    assert {"gunicorn.error", "gpupool.replica"} <= {line["logger"] for line in found}


@pytest.mark.parametrize(
    ("route", "stream"),
    [("/infer", False), ("/v1/completions", False), ("/v1/completions", True)],
)
def test_a_generation_tells_tokens_and_times(route: str, stream: bool, pool: Pool) -> None:
    body: dict[str, Any] = {"instances": ["abc"], "params": {"max_tokens": 5}}
    if route != "/infer":
        body = {"prompt": "abc", "max_tokens": 5, "stream": stream}
    name = f"{route}-{stream}"
    with socket.create_connection(("127.0.0.1", pool.port), timeout=30) as client:
        raw = json.dumps(body).encode()
        head = f"POST {route} HTTP/1.1\r\nHost: x\r\nX-Request-Id: {name}\r\n"
        head += f"Content-Type: application/json\r\nConnection: close\r\nContent-Length: {len(raw)}"
        client.sendall(f"{head}\r\n\r\n".encode() + raw)
        while client.recv(65536):
            pass
    line = access(pool, name)
    assert (line["route"], line["status"]) == (route, 200)
    assert (line["prompt_tokens"], line["generated_tokens"]) == (3, 5)
    assert 0 <= line["queue_s"] < line["total_s"]
    if stream or route == "/infer":
        assert line["queue_s"] < line["first_token_s"] < line["total_s"]
    assert line["worker"] in (0, 1)


def test_a_batch_is_one_line(pool: Pool) -> None:
    body = {"instances": ["a"] * 6, "params": {"max_tokens": 2}}
    assert pool.post("/infer", body, **{"X-Request-Id": "batch"})[0] == 200
    line = access(pool, "batch")
    assert (line["prompt_tokens"], line["generated_tokens"]) == (6, 12)
    assert line["queue_s"] >= 0


@pytest.mark.parametrize(
    ("path", "status"), [("/infer", 400), ("/v1/completions", 400), ("/none", 404)]
)
def test_a_refused_request_is_a_line(path: str, status: int, pool: Pool) -> None:
    name = f"refused{path}"
    assert pool.post(path, {"what": 1}, **{"X-Request-Id": name})[0] == status
    assert access(pool, name)["status"] == status


@pytest.mark.parametrize(
    ("path", "stream"),
    [("/infer", False), ("/v1/completions", False), ("/v1/completions", True)],
)
def test_a_client_that_leaves_is_a_499(path: str, stream: bool, pool: Pool) -> None:
    body: dict[str, Any] = {"prompt": "abc", "max_tokens": 500, "stream": stream}
    if path == "/infer":
        body = {"instances": "abc", "params": {"max_tokens": 500}}
    before = len([line for line in lines(pool) if line.get("status") == 499])
    client = pool.send(path, body)
    wait_until(lambda: any(worker["running"] for worker in pool.workers()), 10, "a running one")
    if stream:
        assert b" 200 " in client.recv(4096)
    client.close()

    def last() -> dict[str, Any] | None:
        found = [line for line in lines(pool) if line.get("status") == 499]
        return found[-1] if len(found) > before else None

    line = wait_until(last, 10, "the line")
    assert line["route"] == path
    assert line["queue_s"] < line["total_s"]


@pytest.mark.parametrize("path", ["/infer", "/v1/completions"])
@pytest.mark.parametrize(
    ("header", "status"), [("Origin: http://elsewhere", 403), ("Content-Length: 99999999", 413)]
)
def test_what_is_refused_before_the_application_has_its_id_and_route(
    path: str, header: str, status: int, pool: Pool
) -> None:
    """Such answers had no X-Request-Id, and a line with id=- and route=unreadable."""
    for given in (f"own-{status}{path}", ""):
        with socket.create_connection(("127.0.0.1", pool.port), timeout=10) as client:
            own = f"X-Request-Id: {given}\r\n" if given else ""
            client.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\n{own}{header}\r\n\r\n".encode())
            answer = http.client.HTTPResponse(client)
            answer.begin()
            assert answer.status == status
            found = answer.headers["X-Request-Id"]
        assert found == given or (not given and len(found) == 32)
        line = access(pool, found)
        assert (line["route"], line["status"], line["client"]) == (path, status, "127.0.0.1")


def _is_unreadable(line: dict[str, Any]) -> bool:
    return line.get("route") == "unreadable" and line["client"] == "127.0.0.1"


def test_what_is_no_http_is_a_line(pool: Pool) -> None:
    with socket.create_connection(("127.0.0.1", pool.port), timeout=10) as client:
        client.sendall(b"nonsense\r\n\r\n")
        assert b" 400 " in client.recv(4096)
    wait_until(lambda: any(map(_is_unreadable, lines(pool))), 10, "it")


def test_probes_are_not_logged(pool: Pool) -> None:
    assert pool.get("/readyz")[0] == 200
    assert pool.get("/none")[0] == 404  # later, so the probe's line would be there
    wait_until(lambda: any(line.get("route") == "/none" for line in lines(pool)), 10, "it")
    assert not [line for line in lines(pool) if line.get("route") == "/readyz"]
