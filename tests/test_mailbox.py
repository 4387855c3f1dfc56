"""Mailboxes between the processes of one pool."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gpupool import mailbox
from gpupool.mailbox import MAX_INLINE, Mailboxes, Message, close_all
from tests.forked import Forked, Say
from tests.mailboxes import open_mailboxes


@pytest.fixture(name="mailboxes")
def _mailboxes() -> Iterator[Mailboxes]:
    with open_mailboxes(3) as found:
        yield found


@pytest.mark.parametrize("size", [0, 10, MAX_INLINE, MAX_INLINE + 1, 3_000_000])
def test_a_message_arrives_whole(mailboxes: Mailboxes, size: int) -> None:
    data = os.urandom(size)
    assert mailboxes.send(1, Message("request", 2, {"client": ["127.0.0.1", 5]}, data))
    message = mailboxes.receive(1)
    assert message is not None
    assert (message.kind, message.sender, message.data) == ("request", 2, data)
    assert message.fields == {"client": ["127.0.0.1", 5]}
    assert message.fds == []


def test_an_empty_mailbox_has_nothing(mailboxes: Mailboxes) -> None:
    assert mailboxes.send(1, Message("request", 0))
    assert mailboxes.receive(2) is None


def test_messages_come_in_their_order(mailboxes: Mailboxes) -> None:
    for number in range(20):
        mailboxes.send(0, Message("ask", number))
    received = [mailboxes.receive(0) for _ in range(20)]
    assert [message.sender for message in received if message] == list(range(20))


def test_a_connection_travels_with_its_message(mailboxes: Mailboxes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert mailboxes.send(1, Message("request", 0, data=b"x" * 50_000, fds=[theirs.fileno()]))
        theirs.close()
        message = mailboxes.receive(1)
        assert message is not None
        assert message.data == b"x" * 50_000
        with socket.socket(fileno=message.fds.pop()) as arrived:
            assert not os.get_inheritable(arrived.fileno())
            arrived.sendall(b"here")
        assert ours.recv(10) == b"here"


def test_a_message_outlives_its_sender(mailboxes: Mailboxes) -> None:
    ours, theirs = socket.socketpair()

    def send(say: Say) -> None:
        mailboxes.send(1, Message("request", 0, data=b"from the dead", fds=[theirs.fileno()]))
        say("sent")

    with ours, theirs:
        sender = Forked(send)
        sender.hear()
        sender.kill()
        theirs.close()
        message = mailboxes.receive(1)
        assert message is not None
        assert message.data == b"from the dead"
        with socket.socket(fileno=message.fds.pop()) as arrived:
            arrived.sendall(b"here")
        assert ours.recv(10) == b"here"


def test_a_full_mailbox_takes_no_more_and_blocks_nobody(mailboxes: Mailboxes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        message = Message("request", 0, data=b"x" * MAX_INLINE, fds=[theirs.fileno()])
        taken = 0
        while mailboxes.send(1, message):
            taken += 1
        assert taken > 5
        for _ in range(taken):
            received = mailboxes.receive(1)
            assert received is not None
            close_all(received.fds)
        assert mailboxes.receive(1) is None
        assert mailboxes.send(1, message)
        assert os.fstat(theirs.fileno())  # the sender keeps its own copy


def test_a_sibling_that_takes_nothing_is_told_once_and_then_now_and_then(
    mailboxes: Mailboxes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs is asked twenty times a second, for as long as it hangs."""
    while mailboxes.send(1, Message("ask", 0)):
        pass
    assert not any(mailboxes.send(1, Message("ask", 0)) for _ in range(100))
    [line] = caplog.messages
    assert line.startswith("cannot hand over to row=1 kind=ask: ")
    monkeypatch.setattr(mailbox, "TELL_AGAIN_S", 0.0)  # a minute later
    assert not mailboxes.send(1, Message("ask", 0))
    assert caplog.messages[1:] == [f"{line} (100 more since the last such line)"]


def test_one_sibling_does_not_hide_another(
    mailboxes: Mailboxes, caplog: pytest.LogCaptureFixture
) -> None:
    for to in (1, 2):
        while mailboxes.send(to, Message("ask", 0)):
            pass
    assert [line.split()[4] for line in caplog.messages] == ["row=1", "row=2"]


@contextmanager
def no_free_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_free_files_a_connection_is_lost_and_what_comes_next_is_not(
    mailboxes: Mailboxes,
) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        mailboxes.send(1, Message("request", 0, fds=[theirs.fileno()]))
        theirs.close()
        mailboxes.send(1, Message("ask", 2))
        with no_free_files():
            message = mailboxes.receive(1)
        assert message is not None
        assert (message.kind, message.sender) == ("ask", 2)
        assert ours.recv(1) == b""


def test_without_free_files_a_large_request_stays_with_the_sender(mailboxes: Mailboxes) -> None:
    with no_free_files():
        assert not mailboxes.send(1, Message("request", 0, data=b"x" * (MAX_INLINE + 1)))
    assert mailboxes.receive(1) is None
