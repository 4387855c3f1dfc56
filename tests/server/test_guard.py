"""What a pool with keys tells, and to whom."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator

import psutil
import pytest

from tests.machine import fake_machine
from tests.pool import SCRIPTED, Pool

pytestmark = pytest.mark.server

KEY = "k-f0e1d2c3b4"
WORD = "xylophonist"


@pytest.fixture(scope="module", name="pool")
def _pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    folder = tmp_path_factory.mktemp("guard")
    keys = folder / "keys"
    keys.write_text(f"{KEY}\n")
    flags = (*SCRIPTED, "--api_key_file", str(keys), "--log_level", "debug")
    with fake_machine(folder, gpus=1) as machine, Pool(folder, *flags, env=machine.env()) as pool:
        yield pool.wait_ready(Authorization=f"Bearer {KEY}")


def ask(
    pool: Pool, target: str, headers: dict[str, str], body: str | None = None
) -> tuple[int, str]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", pool.port, 10)) as client:
        client.request("POST" if body else "GET", target, body, headers)
        response = client.getresponse()
        return response.status, response.read().decode()


@pytest.mark.parametrize(
    "target",
    [
        "/pool",
        "/%70ool",
        "//pool",
        "/livez/../pool",
        "/pool/../livez",
        "/pool?/livez",
        "/v1/models#/livez",
        "http://localhost/pool",
        "http://localhost/livez/../v1/models",
        "/metrics",
        "/openapi.json",
        "/no/such/route",
    ],
)
def test_no_spelling_of_a_route_gets_past_the_key(pool: Pool, target: str) -> None:
    assert ask(pool, target, {})[0] == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"X_API_Key": KEY},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Cookie": f"api_key={KEY}"},
        {"X-Api-Key": KEY + "x"},
        {"X-Forwarded-For": "127.0.0.1", "X-Original-URL": "/livez"},
    ],
    ids=str,
)
def test_no_other_header_is_a_key(pool: Pool, headers: dict[str, str]) -> None:
    assert ask(pool, "/pool", headers)[0] == 401
    assert ask(pool, f"/pool?api_key={KEY}", headers)[0] == 401


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health"])
def test_the_open_routes_tell_nothing_of_the_machine(pool: Pool, path: str) -> None:
    (uuid,) = pool.workers(Authorization=f"Bearer {KEY}")[0]["gpus"]
    status, told = ask(pool, path, {})
    assert status == 200
    assert set(json.loads(told)) == {"status"}
    assert uuid not in told


def test_neither_prompts_nor_keys_reach_the_log(pool: Pool) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    bodies = [
        ("/infer", {"instances": WORD}),
        ("/infer", {"instances": [WORD, 5]}),
        ("/infer", {"instances": WORD, "params": {"stop": WORD, "temprature": 1}}),
        ("/v1/completions", {"model": "M", "prompt": WORD}),
        ("/v1/completions", {"model": WORD, "prompt": WORD}),
    ]
    for path, body in bodies:
        ask(pool, path, headers, json.dumps(body))
    ask(pool, "/infer", headers, f'{{"instances": "{WORD}"')
    ask(pool, "/pool", {"Authorization": f"Bearer {WORD}"})
    log = pool.log()
    assert "model load finished" in log
    assert WORD not in log
    assert KEY not in log


def test_there_is_no_second_door(pool: Pool) -> None:
    """One port; gunicorn's control socket is off, and siblings talk over sockets without a name."""
    doors = []
    for pid in pool.pids():
        for socket in psutil.Process(pid).net_connections("all"):
            if socket.status == psutil.CONN_LISTEN or (
                isinstance(socket.laddr, str) and socket.laddr
            ):
                doors.append(socket.laddr)
    assert set(doors) == {("127.0.0.1", pool.port)}
