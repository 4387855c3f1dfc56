"""Answers written from an event loop: real sockets, gunicorn's own parser and response."""

from __future__ import annotations

import asyncio
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPResponse
from typing import Any

import pytest
from gunicorn.config import Config

from gpupool.answer_socket import AnswerSocket
from gpupool.connection import Connection
from gpupool.errors import Moved
from gpupool.exchange import Exchange, Message, Receive, Send
from gpupool.intake import Intake

GET = b"GET /v1/models?a=b HTTP/1.1\r\nHost: x\r\nX-A: b\r\n\r\n"
POST = b"POST /v1/chat%20x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
OLD = GET.replace(b"HTTP/1.1", b"HTTP/1.0")
LAST = GET.replace(b"X-A: b", b"Connection: close")


class Site:
    """One client, and the connection that was read from it."""

    def __init__(self) -> None:
        self.client, served = socket.socketpair()
        self.served = AnswerSocket.over(served)
        self.client.settimeout(5)
        self.logged: list[Any] = []

    def read(self, raw: bytes) -> Connection:
        self.client.sendall(raw)
        whole: list[Connection] = []
        with selectors.DefaultSelector() as poller:
            intake = Intake(
                poller,
                whole.append,
                whole.append,
                max_body_bytes=1000,
                read_timeout_s=10,
                idle_timeout_s=10,
            )
            conn = Connection(Config(), self.served, ("127.0.0.1", 5), ("127.0.0.1", 2), intake)
            intake.watch(conn)
            while not whole:
                for key, _ in poller.select(0.1):
                    key.data(key.fileobj)
        return conn

    def answer(self, raw: bytes, app: Any, *, close_after: bool = False) -> bool:
        exchange = Exchange(Config(), self.read(raw), close_after=close_after)
        return asyncio.run(exchange.run(app, lambda *given: self.logged.append(given)))

    def received(self, method: str = "GET") -> tuple[HTTPResponse, bytes]:
        response = HTTPResponse(self.client, method=method)
        response.begin()
        return response, response.read()

    def close(self) -> None:
        self.client.close()
        self.served.close()


@pytest.fixture(name="site")
def _site() -> Iterator[Site]:
    with closing(Site()) as site:
        yield site


def answering(*parts: bytes, length: int | None = None, status: int = 200) -> Any:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/plain")]
        headers += [] if length is None else [(b"content-length", str(length).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


def test_the_application_sees_the_request(site: Site) -> None:
    seen: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        seen.extend((scope, await receive()))
        await answering()(scope, receive, send)

    site.answer(POST, app)
    scope, body = seen
    assert scope["method"] == "POST"
    assert (scope["path"], scope["raw_path"]) == ("/v1/chat x", b"/v1/chat%20x")
    assert scope["client"] == ("127.0.0.1", 5)
    assert (b"content-length", b"5") in scope["headers"]
    assert body == {"type": "http.request", "body": b"hello", "more_body": False}


def test_a_query_and_headers_are_passed_on(site: Site) -> None:
    seen: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await answering()(scope, receive, send)

    site.answer(GET, app)
    assert seen[0]["query_string"] == b"a=b"
    assert (b"x-a", b"b") in seen[0]["headers"]


def test_an_answer_of_known_length_has_it_and_keeps_the_connection(site: Site) -> None:
    assert site.answer(GET, answering(b"hello ", b"you", length=9))
    response, body = site.received()
    assert body == b"hello you"
    assert response.getheader("Content-Length") == "9"
    assert response.getheader("Connection") == "keep-alive"


def test_an_answer_of_unknown_length_is_chunked(site: Site) -> None:
    assert site.answer(GET, answering(b"hello ", b"you"))
    response, body = site.received()
    assert body == b"hello you"
    assert response.getheader("Transfer-Encoding") == "chunked"


def test_each_part_is_written_when_it_is_there(site: Site) -> None:
    may_end = threading.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await asyncio.to_thread(may_end.wait, 5)
        await send({"type": "http.response.body", "body": b"last", "more_body": False})

    conn = site.read(GET)
    exchange = Exchange(Config(), conn, close_after=False)
    thread = threading.Thread(target=lambda: asyncio.run(exchange.run(app, lambda *given: None)))
    thread.start()
    response = HTTPResponse(site.client)
    response.begin()
    assert response.read1() == b"first"
    may_end.set()
    assert response.read() == b"last"
    thread.join(5)


def test_an_old_client_gets_no_chunks_and_a_close(site: Site) -> None:
    assert not site.answer(OLD, answering(b"hello"))
    site.served.close()
    response, body = site.received()
    assert body == b"hello"
    assert response.getheader("Transfer-Encoding") is None
    assert response.getheader("Connection") == "close"


@pytest.mark.parametrize(("raw", "close_after"), [(LAST, False), (GET, True)])
def test_a_close_is_announced(site: Site, raw: bytes, close_after: bool) -> None:
    assert not site.answer(raw, answering(b"hello"), close_after=close_after)
    response, _ = site.received()
    assert response.getheader("Connection") == "close"


def test_head_gets_no_body(site: Site) -> None:
    raw = GET.replace(b"GET", b"HEAD")
    assert site.answer(raw, answering(b"hello", length=5))
    response, body = site.received("HEAD")
    assert response.getheader("Content-Length") == "5"
    assert body == b""


def test_the_access_log_is_told(site: Site) -> None:
    site.answer(GET, answering(b"hello", status=404))
    answer, request, environ, took = site.logged[0]
    assert (answer.status, answer.sent) == ("404 Not Found", 5)
    assert environ["REMOTE_ADDR"] == "127.0.0.1"
    assert environ["RAW_URI"] == "/v1/models?a=b"


def test_a_client_that_reads_slowly_gets_all(site: Site) -> None:
    big = b"x" * 3_000_000
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(site.received()[1]))
    thread.start()
    assert site.answer(GET, answering(big, big))
    thread.join(10)
    assert got == [big + big]


def test_a_client_that_never_reads_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpupool.exchange.SEND_TIMEOUT_S", 0.2)
    assert not site.answer(GET, answering(b"x" * 3_000_000))


def test_an_application_hears_that_its_client_left(site: Site) -> None:
    heard: list[Message] = []
    conn = site.read(GET)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        conn.call.hang_up()
        heard.append(await receive())

    exchange = Exchange(Config(), conn, close_after=False)
    assert not asyncio.run(exchange.run(app, lambda *given: None))
    assert heard == [{"type": "http.disconnect"}]


def test_an_application_that_does_not_listen_is_cancelled(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpupool.attending.LEAVE_S", 0.1)
    cancelled: list[bool] = []
    conn = site.read(GET)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        conn.call.hang_up()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    began = time.monotonic()
    exchange = Exchange(Config(), conn, close_after=False)
    assert not asyncio.run(exchange.run(app, lambda *given: None))
    assert cancelled == [True]
    assert time.monotonic() - began < 5


def test_a_request_that_another_worker_answers_leaves_nothing_on_the_wire(site: Site) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        raise Moved("another worker answers")

    with pytest.raises(Moved):
        site.answer(GET, app)
    site.client.setblocking(False)
    with pytest.raises(BlockingIOError):
        site.client.recv(1)


def test_an_answer_that_breaks_off_does_not_look_whole(site: Site) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        raise RuntimeError("broken")

    assert not site.answer(GET, app)
    site.served.close()
    assert not site.client.recv(10_000).endswith(b"0\r\n\r\n")


def test_the_end_of_an_answer_is_told_before_its_last_bytes_are_sent(site: Site) -> None:
    told: list[bytes] = []
    conn = site.read(GET)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await send({"type": "http.response.body", "body": b"last"})

    exchange = Exchange(
        Config(), conn, close_after=False, on_answered=lambda: told.append(site.client.recv(10_000))
    )
    assert asyncio.run(exchange.run(app, lambda *given: None))
    [sent] = told
    assert b"first" in sent
    assert b"last" not in sent
    assert b"last" in site.client.recv(10_000)


def test_when_the_loop_ends_the_application_may_still_say_why(site: Site) -> None:
    conn = site.read(GET)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)  # longer than whoever does not wait for it takes
            await answering(b"the engine died", status=503)(scope, receive, send)

    async def end_all() -> bool:
        exchange = Exchange(Config(), conn, close_after=False)
        task = asyncio.ensure_future(exchange.run(app, lambda *given: None))
        await asyncio.sleep(0.05)
        for other in asyncio.all_tasks() - {asyncio.current_task()}:
            other.cancel()
        return await task

    asyncio.run(end_all())
    response, body = site.received()
    assert (response.status, body) == (503, b"the engine died")
