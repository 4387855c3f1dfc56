"""What the master tells systemd, heard at a real notify socket."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpupool.notify import MAX_STATUS_CHARS, Notifier, render_status
from gpupool.scoreboard import Row, Scoreboard
from gpupool.settings import Settings, read_settings
from tests.notify_socket import NotifySocket


@pytest.fixture(name="systemd")
def _systemd(tmp_path: Path) -> Iterator[NotifySocket]:
    with NotifySocket(tmp_path) as systemd:
        yield systemd


@pytest.fixture(name="board")
def _board() -> Scoreboard:
    board = Scoreboard(2)
    for slot in range(2):
        board.claim(slot)
        board[slot].pid = os.getpid()
    return board


def settings(**fields: object) -> Settings:
    return read_settings(model_name="M", **fields)


def test_ready_is_told_when_the_first_worker_is(systemd: NotifySocket, board: Scoreboard) -> None:
    notifier = Notifier(settings(), board, systemd.address)
    board[1].enter("loading")
    notifier.turn()
    assert not systemd.has("READY", "1")
    board[1].enter("ready")
    notifier.turn()
    assert systemd.has("READY", "1")


def test_a_quorum_is_awaited(systemd: NotifySocket, board: Scoreboard) -> None:
    notifier = Notifier(settings(ready_quorum=2), board, systemd.address)
    board[0].enter("ready")
    notifier.turn()
    assert not systemd.has("READY", "1")
    board[1].enter("ready")
    notifier.turn()
    assert systemd.has("READY", "1")


def test_ready_is_told_once(systemd: NotifySocket, board: Scoreboard) -> None:
    notifier = Notifier(settings(), board, systemd.address)
    board[0].enter("ready")
    notifier.turn()
    board[0].enter("failed")
    notifier.turn()
    board[0].enter("ready")
    notifier.turn()
    assert [m for m in systemd.listen() if "READY" in m] == [{"READY": "1"}]


def test_an_abstract_socket_is_heard(board: Scoreboard) -> None:
    with NotifySocket() as systemd:
        Notifier(settings(), board, systemd.address).turn()
        assert systemd.last("STATUS") == "0 of 2 ready, 2 starting"


def test_the_start_timeout_is_extended_while_a_worker_loads(
    systemd: NotifySocket, board: Scoreboard
) -> None:
    board[0].enter("loading")
    Notifier(settings(), board, systemd.address).turn()
    assert systemd.last("EXTEND_TIMEOUT_USEC") == "60000000"


def test_a_start_that_only_fails_is_not_extended(systemd: NotifySocket, board: Scoreboard) -> None:
    for slot in range(2):
        board[slot].enter("failed")
    Notifier(settings(), board, systemd.address).turn()
    assert systemd.last("EXTEND_TIMEOUT_USEC") == ""


def test_a_service_that_is_up_extends_nothing(systemd: NotifySocket, board: Scoreboard) -> None:
    board[0].enter("ready")
    board[1].enter("loading")
    Notifier(settings(), board, systemd.address).turn()
    assert systemd.has("READY", "1")
    assert systemd.last("EXTEND_TIMEOUT_USEC") == ""


def test_an_unchanged_status_is_not_repeated(systemd: NotifySocket, board: Scoreboard) -> None:
    notifier = Notifier(settings(), board, systemd.address)
    for _ in range(3):
        notifier.turn()
    assert len([m for m in systemd.listen() if "STATUS" in m]) == 1


def test_a_reload_is_told_from_beginning_to_end(systemd: NotifySocket, board: Scoreboard) -> None:
    notifier = Notifier(settings(), board, systemd.address)
    board[0].enter("ready")
    notifier.turn()
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    notifier.turn()
    notifier.reloaded()
    states = [m for m in systemd.listen() if {"READY", "RELOADING"} & set(m)]
    assert [next(iter(message)) for message in states] == ["READY", "RELOADING", "READY"]
    assert before <= int(states[1]["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert systemd.last("EXTEND_TIMEOUT_USEC") == "60000000"


def test_a_reload_before_the_first_ready_worker_does_not_make_it_ready(
    systemd: NotifySocket, board: Scoreboard
) -> None:
    notifier = Notifier(settings(), board, systemd.address)
    notifier.turn()
    notifier.reloading()
    notifier.reloaded()
    notifier.turn()
    assert not systemd.has("READY", "1")
    assert systemd.last("RELOADING") == ""


def test_the_end_is_told_once_with_time_for_the_drain(
    systemd: NotifySocket, board: Scoreboard
) -> None:
    notifier = Notifier(settings(graceful_timeout_s=600), board, systemd.address)
    board[0].running = 3
    notifier.stop()
    notifier.stop()
    [message] = systemd.listen()
    assert message["STOPPING"] == "1"
    assert message["STATUS"] == "stopping; 3 running, 600 s to finish"
    assert int(message["EXTEND_TIMEOUT_USEC"]) > 600_000_000


def test_the_watchdog_hears_of_each_turn_that_is_due(
    systemd: NotifySocket, board: Scoreboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", systemd.address)
    monkeypatch.setenv("WATCHDOG_USEC", "3600000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    notifier = Notifier.from_environment(settings(), board)
    for _ in range(3):
        notifier.turn()
    assert systemd.count("WATCHDOG", "1") == 1


def test_another_process_s_watchdog_is_not_fed(
    systemd: NotifySocket, board: Scoreboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", systemd.address)
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    Notifier.from_environment(settings(), board).turn()
    assert systemd.last("STATUS")
    assert not systemd.last("WATCHDOG")


def test_systemd_s_variables_are_taken_out_of_the_environment(
    board: Scoreboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.setenv(name, "1")
    Notifier.from_environment(settings(), board)
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)


@pytest.mark.timeout(10)
def test_a_busy_systemd_is_told_later(systemd: NotifySocket, board: Scoreboard) -> None:
    """A full queue neither holds the master up nor loses the message that it is ready."""
    notifier = Notifier(settings(), board, systemd.address)
    for number in range(2000):
        board[0].describe(phase=f"phase {number}")
        board[0].enter("loading")
        notifier.turn()
    board[0].enter("ready")
    notifier.turn()
    assert len(systemd.listen()) < 2000
    assert not systemd.has("READY", "1")
    notifier.turn()
    assert systemd.has("READY", "1")


def test_a_systemd_that_is_gone_does_no_harm(tmp_path: Path, board: Scoreboard) -> None:
    notifier = Notifier(settings(), board, str(tmp_path / "gone"))
    notifier.turn()
    notifier.stop()


def rows(*states: str) -> list[Row]:
    board = Scoreboard(len(states))
    for row, state in zip(board, states, strict=False):
        row.pid = os.getpid()
        row.enter(state)
    return list(board)[: len(states)]


def test_the_status_counts_states_and_tells_the_first_reason_of_each() -> None:
    found = rows("ready", "ready", "loading", "failed", "quarantined")
    found[2].describe(phase="reading weights")
    found[2].since -= 47
    found[3].describe(last_error="out of\nmemory")
    found[4].describe(phase="GPU 4 fell off the bus")
    assert render_status(found) == (
        "2 of 5 ready, 1 loading (reading weights, 40 s), 1 failed: out of memory, "
        "1 quarantined: GPU 4 fell off the bus"
    )


def test_a_worker_without_a_heartbeat_does_not_count_as_ready() -> None:
    found = rows("ready", "ready")
    found[1].heartbeat -= 60
    assert render_status(found) == "1 of 2 ready, 1 without a heartbeat"


def test_the_status_stays_one_short_line() -> None:
    found = rows("failed", "waiting", "quarantined")
    for row in found:
        row.describe(phase="x " * 100, last_error="y " * 200)
    assert len(render_status(found)) <= MAX_STATUS_CHARS
