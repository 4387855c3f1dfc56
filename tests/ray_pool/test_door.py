"""The door around Serve's proxy, with stand-ins for what Serve answers behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gpupool.exchange import Message, Receive, Send
from gpupool.ray_pool.door import DRAIN_PATH, SECRET_HEADER, Door
from gpupool.ray_pool.flask_call import Reply
from gpupool.ray_pool.rules import DoorRules
from gpupool.settings import Settings

RULES = DoorRules.of_settings(
    Settings(max_body_bytes=1000, read_timeout_s=0.2, max_wait_s=0.5), "the secret"
)
Behind = Callable[[Message, Receive, Send], Awaitable[None]]
JSON = (b"content-type", b"application/json")


class Client:
    """Asks a door, and has what it is sent. `body` in pieces; None: it says nothing more."""

    def __init__(self, door: Door, *body: bytes | None) -> None:
        self._door = door
        self._body = list(body or (b"",))
        self.messages: list[Message] = []
        self.gone = asyncio.Event()

    async def ask(self, path: str, method: str = "POST", **headers: str) -> None:
        given = {"host": "localhost", **headers}
        await self._door(
            {
                "type": "http",
                "method": method,
                "path": path,
                "raw_path": path.encode(),
                "query_string": b"",
                "http_version": "1.1",
                "scheme": "http",
                "server": ("localhost", 1),
                "headers": [
                    (name.replace("_", "-").encode(), v.encode()) for name, v in given.items()
                ],
            },
            self._receive,
            self._send,
        )

    async def _receive(self) -> Message:
        if self._body and (piece := self._body[0]) is not None:
            self._body.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self._body)}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    def header(self, name: bytes) -> list[bytes]:
        return [value for given, value in self.messages[0]["headers"] if given == name]

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages[1:])

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


def answers(status: int, body: bytes, *headers: tuple[bytes, bytes]) -> Behind:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    return app


async def dies(scope: Message, receive: Receive, send: Send) -> None:
    """What reaches the door when a replica is killed: nothing."""
    await receive()


FULL = answers(429, b"Request dropped due to backpressure", (b"content-type", b"text/plain"))
MOVED = answers(503, b"{}", JSON, (b"x-gpupool-moved", b"1"))
WHOLE = answers(200, b"[1]", JSON)


def behind(*apps: Behind) -> tuple[Door, list[bytes]]:
    """A door before one after the other, the last again and again; the bodies they have got."""
    left, bodies = list(apps), list[bytes]()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        bodies.append((await receive())["body"])

        async def nothing() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        await (left.pop(0) if len(left) > 1 else left[0])(scope, nothing, send)

    return Door(app, RULES), bodies  # type: ignore[arg-type]


def ask(door: Door, path: str = "/infer", *body: bytes | None, **headers: str) -> Client:
    async def run() -> Client:
        client = Client(door, *body)
        await asyncio.wait_for(client.ask(path, **headers), 10)
        return client

    return asyncio.run(run())


def test_a_dead_replicas_request_is_asked_of_the_next_with_the_same_body() -> None:
    door, bodies = behind(dies, MOVED, WHOLE)
    client = ask(door, "/infer", b"a", b"b")
    assert (client.status, client.body) == (200, b"[1]")
    assert bodies == [b"ab"] * 3


def test_what_kills_three_replicas_is_a_503() -> None:
    door, bodies = behind(dies)
    client = ask(door)
    assert client.status == 503
    assert "died" in client.error["message"]
    assert client.header(b"retry-after") == [b"1"]
    assert len(bodies) == 3


def test_what_may_kill_replicas_runs_alone_the_last_time() -> None:
    """Two replicas died under both requests; one of the two is innocent."""
    died = asyncio.Event()

    async def replica(scope: Message, receive: Receive, send: Send) -> None:
        nonlocal died
        mine = died
        if (await receive())["body"] == b"kills":
            await asyncio.sleep(0.02)
            died = asyncio.Event()
            mine.set()
        else:
            try:
                await asyncio.wait_for(mine.wait(), 0.1)
            except TimeoutError:
                await WHOLE(scope, receive, send)

    async def run() -> list[int]:
        door = Door(replica, RULES)  # type: ignore[arg-type]
        clients = [Client(door, b"kills"), Client(door, b"innocent")]
        await asyncio.gather(*(client.ask("/infer") for client in clients))
        return [client.status for client in clients]

    assert asyncio.run(run()) == [503, 200]


def test_the_mark_of_a_moved_request_never_leaves() -> None:
    client = ask(behind(MOVED)[0])
    assert client.status == 503
    assert not client.header(b"x-gpupool-moved")


def test_a_full_queue_is_told_at_once_where_clients_try_again() -> None:
    door, bodies = behind(FULL)
    client = ask(door, "/v1/chat/completions")
    assert client.status == 429
    assert client.error["code"] == "overloaded"
    assert client.header(b"retry-after") == [b"1"]
    assert len(bodies) == 1


def test_infer_waits_for_a_place_in_the_queue() -> None:
    client = ask(behind(FULL, FULL, WHOLE)[0], "/infer")
    assert client.status == 200


def test_infer_that_waited_its_time_is_a_429() -> None:
    client = ask(behind(FULL)[0], "/infer")
    assert (client.status, client.error["code"]) == (429, "overloaded")


@pytest.mark.parametrize("status", [404, 500, 503])
def test_serves_own_words_never_reach_a_client(status: int) -> None:
    client = ask(behind(answers(status, b"Traceback", (b"content-type", b"text/plain")))[0])
    assert (client.status, client.error["code"]) == (503, "not_ready")
    assert client.header(b"retry-after") == [b"5"]


def test_a_replicas_own_error_is_let_through() -> None:
    client = ask(behind(answers(400, b'{"error": 1}', JSON))[0])
    assert (client.status, client.body) == (400, b'{"error": 1}')


def test_a_stream_that_breaks_off_ends_with_an_error() -> None:
    async def breaks_off(scope: Message, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})

    client = ask(behind(breaks_off)[0], "/v1/completions")
    first, last = client.body.decode().strip().split("\n\n")
    assert first == "data: 1"
    assert "died" in json.loads(last.removeprefix("data: "))["error"]["message"]
    assert not client.messages[-1]["more_body"]


def test_whatever_else_breaks_off_does_not_look_whole() -> None:
    async def breaks_off(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [JSON]})
        await send({"type": "http.response.body", "body": b"[1", "more_body": True})

    client = ask(behind(breaks_off)[0])
    assert client.messages[-1]["more_body"]


def test_the_request_id_comes_back_once() -> None:
    door, _ = behind(answers(200, b"", (b"x-request-id", b"serves"), JSON))
    assert ask(door, x_request_id="mine-1").header(b"x-request-id") == [b"mine-1"]
    [made] = ask(door, x_request_id="not fit for a log").header(b"x-request-id")
    assert len(made) == 32


@pytest.mark.parametrize(
    "body", [[b"x" * 600, b"x" * 600], [b"x" * 1001]], ids=["as it comes", "whole"]
)
def test_a_large_body_is_a_413(body: list[bytes]) -> None:
    door, bodies = behind(WHOLE)
    assert ask(door, "/infer", *body).status == 413
    assert ask(door, "/infer", b"x", None, content_length="1001").status == 413
    assert not bodies


def test_a_body_that_does_not_come_is_a_408_and_never_held_a_slot() -> None:
    door, bodies = behind(WHOLE)
    client = ask(door, "/infer", b"x", None)
    assert client.status == 408
    assert not bodies


def test_no_page_may_ask_unless_it_is_named() -> None:
    client = ask(behind(WHOLE)[0], origin="http://elsewhere")
    assert client.status == 403


def test_a_host_that_is_none_is_a_400() -> None:
    assert ask(behind(WHOLE)[0], host="a/b").status == 400


def test_livez_is_answered_by_the_door_alone() -> None:
    async def never(scope: Message, receive: Receive, send: Send) -> None:
        raise AssertionError("asked")

    async def run() -> Client:
        client = Client(Door(never, RULES))
        await client.ask("/livez", "GET")
        return client

    client = asyncio.run(run())
    assert (client.status, json.loads(client.body)) == (200, {"status": "live"})


class Handle:
    """Serve's, to replicas that answer, or are hidden, in turn."""

    def __init__(self, *answers: bool) -> None:
        self._answers = list(answers)

    def broadcast(self, method: str, scope: Message) -> Handle:
        return self

    async def results_async(self, **how: Any) -> list[Reply]:
        if not self._answers.pop(0):
            raise RuntimeError("no replicas")
        return [Reply(200, [JSON], b'{"status": "ready"}')]


def test_replicas_that_serve_hides_for_a_moment_are_still_there() -> None:
    """Serve shows none while it tells them a new limit."""
    door = Door(WHOLE, RULES)  # type: ignore[arg-type]
    door._handle = Handle(False, True, False, False, True)

    async def run() -> list[int]:
        clients = [Client(door) for _ in range(3)]
        for client in clients:
            await client.ask("/readyz", "GET")
        return [client.status for client in clients]

    assert asyncio.run(run()) == [503, 200, 200]


def test_a_client_that_left_is_not_asked_for_again() -> None:
    asked = []

    async def leaves(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        asked.append(await receive())

    async def run() -> None:
        client = Client(Door(leaves, RULES), b"")
        client.gone.set()
        await client.ask("/infer")
        assert not client.messages

    asyncio.run(run())
    assert asked == [{"type": "http.disconnect"}]


def test_only_the_launcher_may_shut_the_door() -> None:
    door, _ = behind(WHOLE)
    assert ask(door, DRAIN_PATH).status == 404
    assert ask(door, DRAIN_PATH, **{SECRET_HEADER.decode(): "guessed"}).status == 404
    assert ask(door).status == 200
    told = ask(door, DRAIN_PATH, **{SECRET_HEADER.decode(): "the secret"})
    assert json.loads(told.body) == {"inside": 0}
    late = ask(door)
    assert (late.status, late.error["code"]) == (503, "draining")


def test_the_rules_travel_without_a_key() -> None:
    settings = Settings(api_key=("a-key",), cors_origin=("http://a",))
    rules = DoorRules.of_settings(settings, "s")
    environment = rules.as_environment()
    assert "a-key" not in str(environment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(*next(iter(environment.items())))
        assert DoorRules.from_environment() == rules
