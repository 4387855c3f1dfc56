"""A whole answer has a deadline."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from gpupool.answer_socket import AnswerSocket

SIZE = 1 << 20


@pytest.fixture(name="ends")
def _ends() -> Iterator[tuple[AnswerSocket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with AnswerSocket.over(ours) as made, theirs:
        yield made, theirs


def test_it_is_the_same_connection(ends: tuple[AnswerSocket, socket.socket]) -> None:
    ours, theirs = ends
    ours.sendall(b"hello")
    assert theirs.recv(9) == b"hello"
    assert ours.gettimeout() is None


def test_a_long_answer_arrives_whole(ends: tuple[AnswerSocket, socket.socket]) -> None:
    ours, theirs = ends
    taken = bytearray()

    def take() -> None:
        while data := theirs.recv(65536):
            taken.extend(data)

    reader = threading.Thread(target=take)
    reader.start()
    answer = bytes(range(256)) * (SIZE // 256)
    ours.sendall(memoryview(answer))
    ours.shutdown(socket.SHUT_WR)
    reader.join(10)
    assert bytes(taken) == answer


@pytest.mark.parametrize("pause_s", [0.02, None], ids=["trickle", "nothing"])
def test_a_client_that_hardly_reads_is_given_up(
    ends: tuple[AnswerSocket, socket.socket], pause_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpupool.answer_socket.MIN_BYTES_PER_S", 1000 * SIZE)
    ours, theirs = ends
    ours.patience_s = 0.5
    stop = threading.Event()

    def trickle() -> None:
        while pause_s is not None and not stop.wait(pause_s):
            theirs.recv(65536)

    reader = threading.Thread(target=trickle)
    reader.start()
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        ours.sendall(bytes(32 * SIZE))
    assert time.monotonic() - began < 5
    stop.set()
    reader.join(10)
