"""Reading requests without a thread: real sockets, gunicorn's own parser."""

from __future__ import annotations

import errno
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import LimitRequestHeaders

from gpupool.answer_socket import AnswerSocket
from gpupool.call import History
from gpupool.connection import Connection
from gpupool.errors import ReadTimeout, TooLarge
from gpupool.intake import Intake
from gpupool.linger import MAX_LINGERING

POST = b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\nhello world"
CHUNKED = (
    b"POST /infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"6\r\nhello \r\n5;a=b\r\nworld\r\n0\r\n\r\n"
)


class Reader:
    """An Intake with a main loop that the test turns."""

    def __init__(self, **options: Any) -> None:
        self.poller = selectors.DefaultSelector()
        self.whole: list[Connection] = []
        self.closed: list[Connection] = []
        self.sockets: list[socket.socket] = []
        settings = {"max_body_bytes": 1000, "read_timeout_s": 10, "idle_timeout_s": 10} | options
        self.intake = Intake(self.poller, self.whole.append, self.closed.append, **settings)

    def connect(self, kind: type[AnswerSocket] = AnswerSocket) -> tuple[socket.socket, Connection]:
        client, served = socket.socketpair()
        served = kind.over(served)
        served.setblocking(False)
        conn = Connection(Config(), served, ("127.0.0.1", 1), ("127.0.0.1", 2), self.intake)
        self.intake.watch(conn)
        self.sockets += (client, served)
        return client, conn

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        self.poller.close()

    def turn(self) -> None:
        for key, _ in self.poller.select(0.02):
            key.data(key.fileobj)
        self.intake.expire()

    def turn_until(self, results: list[Connection], count: int = 1) -> None:
        end = time.monotonic() + 5
        while len(results) < count:
            assert time.monotonic() < end, "nothing came out of the intake"
            self.turn()


@pytest.fixture(name="reader")
def _reader() -> Iterator[Reader]:
    with closing(Reader()) as reader:
        yield reader


@pytest.mark.parametrize("raw", [POST, CHUNKED], ids=["length", "chunked"])
@pytest.mark.parametrize("step", [1, 2, 3, 7, 50, 1000])
def test_a_request_is_whole_however_it_is_cut(reader: Reader, raw: bytes, step: int) -> None:
    client, conn = reader.connect()
    for start in range(0, len(raw), step):
        assert not reader.whole
        client.sendall(raw[start : start + step])
        reader.turn()
    reader.turn_until(reader.whole)
    assert reader.whole == [conn]
    assert next(conn.parser).method == "POST"
    assert conn.parser.request.body.read() == b"hello world"


def test_half_sent_requests_take_no_thread(reader: Reader) -> None:
    before = threading.active_count()
    clients = [reader.connect()[0] for _ in range(100)]
    for client in clients:
        client.sendall(POST[:40])
    for _ in range(110):
        reader.turn()
    assert threading.active_count() == before
    assert not reader.whole
    clients[50].sendall(POST[40:])
    reader.turn_until(reader.whole)


def test_pipelined_requests_come_one_after_the_other(reader: Reader) -> None:
    client, conn = reader.connect()
    client.sendall(POST + CHUNKED)
    reader.turn_until(reader.whole)
    assert conn.parser.unreader.buf.getvalue() == CHUNKED
    reader.intake.read(conn)
    assert len(reader.whole) == 2
    assert conn.parser.request.body.read() == b"hello world"


def test_what_comes_after_a_forwarded_request_has_a_history_of_its_own(reader: Reader) -> None:
    """Else it would have waited in the room since the one before came to another worker."""
    client, conn = reader.connect()
    conn.expect(POST, History(since=1.0))
    client.sendall(POST)
    reader.turn_until(reader.whole)
    assert (conn.was_forwarded, conn.history.since) == (True, 1.0)
    conn.forget_request()
    reader.intake.read(conn)
    reader.turn_until(reader.whole, 2)
    assert not conn.was_forwarded
    assert conn.history.since > 1.0


def test_a_client_that_leaves_is_forgotten(reader: Reader) -> None:
    for sent in (b"", POST[:30], POST[:-3]):
        client, _ = reader.connect()
        client.sendall(sent)
        reader.turn()
        client.close()
    reader.turn_until(reader.closed, 3)
    assert not reader.whole


class Unreachable(AnswerSocket):
    """A client whose network is gone."""

    def recv(self, size: int, flags: int = 0) -> bytes:
        raise OSError(errno.EHOSTUNREACH, "No route to host")


def test_a_client_that_cannot_be_reached_any_more_is_forgotten(reader: Reader) -> None:
    client, conn = reader.connect(Unreachable)
    client.sendall(POST[:20])
    reader.turn_until(reader.closed)
    assert (reader.closed, reader.whole) == ([conn], [])


def test_a_body_over_the_limit_is_refused_before_it_is_read(reader: Reader) -> None:
    client, conn = reader.connect()
    client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n")
    reader.turn_until(reader.whole)
    with pytest.raises(TooLarge):
        next(conn.parser)


def test_an_endless_chunked_body_is_refused_at_the_limit(reader: Reader) -> None:
    client, conn = reader.connect()
    client.sendall(CHUNKED.partition(b"6\r\n")[0] + b"ff\r\n" * 1)
    for _ in range(10):
        client.sendall(b"x" * 255 + b"\r\nff\r\n")
        reader.turn()
    assert reader.whole == [conn]
    with pytest.raises(TooLarge):
        next(conn.parser)


def test_too_many_headers_are_refused(reader: Reader) -> None:
    client, conn = reader.connect()
    client.sendall(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n")
    reader.turn_until(reader.whole)
    with pytest.raises(LimitRequestHeaders):
        next(conn.parser)


@pytest.mark.parametrize("sent", [POST[:20], POST[:-1]], ids=["head", "body"])
def test_a_request_that_never_ends_times_out(sent: bytes) -> None:
    with closing(Reader(read_timeout_s=0.1)) as reader:
        client, conn = reader.connect()
        client.sendall(sent)
        reader.turn_until(reader.whole)
        with pytest.raises(ReadTimeout):
            next(conn.parser)


def test_a_new_connection_has_time_to_send_however_short_idle_ones_live() -> None:
    with closing(Reader(idle_timeout_s=0)) as reader:
        client, _ = reader.connect()
        reader.turn()
        client.sendall(POST)
        reader.turn_until(reader.whole)


def test_lingering_connections_are_bounded(reader: Reader) -> None:
    for _ in range(MAX_LINGERING + 5):
        _client, conn = reader.connect()
        reader.poller.unregister(conn.sock)
        conn.close(graceful=True)
    assert [sock.fileno() for sock in reader.sockets[1::2]].count(-1) == 5


def test_an_idle_connection_is_closed_after_its_time() -> None:
    with closing(Reader(idle_timeout_s=0.1, read_timeout_s=0.1)) as reader:
        _client, conn = reader.connect()
        reader.turn_until(reader.closed)
        assert reader.closed == [conn]


def test_the_client_is_told_to_go_on_with_its_body(reader: Reader) -> None:
    client, conn = reader.connect()
    head = POST.partition(b"hello")[0].replace(b"Host: x", b"Host: x\r\nExpect: 100-continue")
    client.sendall(head)
    reader.turn()
    assert client.recv(100).startswith(b"HTTP/1.1 100 Continue")
    client.sendall(b"hello world")
    reader.turn_until(reader.whole)
    assert conn.parser.request.body.read() == b"hello world"


def test_a_graceful_close_does_not_hold_up_the_loop(reader: Reader) -> None:
    client, conn = reader.connect()
    client.sendall(POST)
    reader.turn_until(reader.whole)
    conn.sock.sendall(b"answer")
    began = time.monotonic()
    conn.close(graceful=True)
    assert time.monotonic() - began < 0.5
    assert client.recv(100) == b"answer"
    assert client.recv(100) == b""
    client.close()
    reader.turn()
    assert conn.sock.fileno() == -1
