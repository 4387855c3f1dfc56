"""A pool's log: kept small while many write to it, read by worker, followed over a cut."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpupool import json_lines
from gpupool.log_keeper import NUM_KEPT, LogKeeper, rotate
from gpupool.pools import run_dir
from gpupool.pools.log_lines import Follower, WorkerFilter, read_lines
from gpupool.pools.look import last_line
from gpupool.pools.record import Record

HEAD = "[2026-11-28 03:52:44 +0000] [{pid}] [INFO] {text}"
LINES = [
    HEAD.format(pid=1, text="Starting gunicorn"),
    HEAD.format(pid=1, text="worker 0: CPU cores 0"),
    HEAD.format(pid=1, text="worker 1: CPU cores 1"),
    HEAD.format(pid=10, text="loading worker=0 phase='x'"),
    HEAD.format(pid=11, text="loading worker=1 phase='x'"),
    HEAD.format(pid=11, text="an error of the engine"),
    "Traceback of that error",
    HEAD.format(pid=10, text="request done"),
    HEAD.format(pid=1, text="worker 1 pid=12 is replaced"),
    HEAD.format(pid=12, text="Worker exiting (pid: 12)"),
    HEAD.format(pid=1, text="worker 10 pid=20 died"),
]


@pytest.mark.parametrize(("worker", "kept"), [(0, [1, 3, 7]), (1, [2, 4, 5, 6, 8, 9]), (10, [10])])
def test_a_workers_lines_are_its_own_and_those_that_name_it(worker: int, kept: list[int]) -> None:
    shown = WorkerFilter(worker)
    assert [i for i, line in enumerate(LINES) if shown.keeps(line)] == kept


def test_of_json_lines_too() -> None:
    fields = [
        {"worker": None, "message": "worker 1: CPU cores 1"},
        {"worker": 1, "message": "of an engine"},
        {"worker": 0, "message": "worker 1 is not mine"},
        {"worker": None, "message": "Starting gunicorn"},
    ]
    found = [json_lines.render(level="info", logger="x", **one) for one in fields]  # type: ignore[arg-type]
    shown = WorkerFilter(1)
    assert [shown.keeps(line + "\n") for line in found] == [True, True, False, False]


def test_why_a_pool_ended_is_read_out_of_json_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUPOOL_RUN_DIR", str(tmp_path))
    record = Record("a", 1, 1, "", "", "http://x", "M", "", "", {})
    line = json_lines.render("no worker can ever be ready", level="error", logger="x")
    (run_dir.folder_of("a") / "pool.log").write_text(f"first\n{line}\n")
    assert last_line(record) == "no worker can ever be ready"


@pytest.fixture(name="log")
def _log(tmp_path: Path) -> Path:
    return tmp_path / "pool.log"


def test_a_log_is_cut_while_others_write_to_it(log: Path) -> None:
    fds = [os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) for _ in range(2)]
    os.write(fds[0], b"a\n")
    os.write(fds[1], b"b\n")
    rotate(log)
    os.write(fds[1], b"c\n")
    os.write(fds[0], b"d\n")
    assert log.read_bytes() == b"c\nd\n"
    assert log.with_name("pool.log.1").read_bytes() == b"a\nb\n"
    assert log.with_name("pool.log.1").stat().st_mode & 0o777 == 0o600
    for fd in fds:
        os.close(fd)


def test_older_logs_are_kept_up_to_a_number(log: Path) -> None:
    for number in range(NUM_KEPT + 3):
        log.write_text(f"{number}\n")
        rotate(log)
    kept = [log.with_name(f"pool.log.{n}").read_text() for n in range(1, NUM_KEPT + 1)]
    assert kept == [f"{n}\n" for n in range(NUM_KEPT + 2, 2, -1)]
    assert len(list(log.parent.iterdir())) == NUM_KEPT + 1
    log.write_text("new\n")
    whole = list(read_lines(log, until=4))
    assert whole == [f"{n}\n" for n in range(3, NUM_KEPT + 3)] + ["new\n"]


def test_only_a_log_that_is_too_large_is_cut(log: Path) -> None:
    log.write_bytes(b"12345")
    LogKeeper(log, max_bytes=5).turn()
    assert log.read_bytes() == b"12345"
    LogKeeper(log, max_bytes=4).turn()
    assert log.read_bytes() == b""


def test_a_log_that_is_gone_does_not_end_the_master(log: Path) -> None:
    LogKeeper(log).turn()
    LogKeeper(None).turn()


def test_the_variable_does_not_reach_the_workers(
    monkeypatch: pytest.MonkeyPatch, log: Path
) -> None:
    monkeypatch.setenv("GPUPOOL_LOG_FILE", str(log))
    LogKeeper.from_environment()
    assert "GPUPOOL_LOG_FILE" not in os.environ


def test_a_follower_loses_no_line_when_the_log_is_cut(log: Path) -> None:
    log.write_text("before\n")
    follower = Follower(log)
    with log.open("a") as writer:
        writer.write("one\ntw")
        writer.flush()
        assert list(follower.new_lines()) == ["one\n"]
        writer.write("o\nthree\n")
        writer.flush()
        rotate(log)
        writer.write("four\n")
        writer.flush()
        assert list(follower.new_lines()) == ["two\n", "three\n", "four\n"]
    assert list(follower.new_lines()) == []
