"""What becomes of lines that others write, when the log is JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gpupool import json_lines
from gpupool.log_end import LogEnd
from gpupool.log_relay import MAX_LINE_BYTES, Stream, relay

TRACE = 'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\n    f()\n\n'
TRACE += "ValueError: no\n"


def told(*pieces: bytes, worker: int | None = 3) -> list[dict[str, Any]]:
    stream = Stream(worker)
    lines = [line for piece in pieces for line in stream.feed(piece)]
    return [json.loads(line) for line in [*lines, *stream.flush()]]


def test_a_line_is_an_object_with_its_worker() -> None:
    [line] = told(b"ggml_init: found 0 devices\n")
    assert line.pop("time")
    assert line == {
        "level": "info",
        "logger": "output",
        "worker": 3,
        "message": "ggml_init: found 0 devices",
    }
    assert told(b"x\n", worker=None)[0]["worker"] is None


def test_a_line_in_pieces_is_one_and_the_last_needs_no_end() -> None:
    assert [line["message"] for line in told(b"a", b"b\nc", b"\n\nd")] == ["ab", "c", "d"]


def test_vllms_lines_keep_level_and_process() -> None:
    text = b"(EngineCore pid=42) WARNING 11-28 10:00:00 [core.py:58] too \xe2\x80\x9clong\n"
    [line] = told(text)
    assert (line["level"], line["logger"], line["pid"]) == ("warning", "vllm", 42)
    assert line["message"] == "too “long"
    assert told(b"INFO 11-28 10:00:00 [a.py:1] x\n")[0]["level"] == "info"


def test_a_traceback_is_one_object() -> None:
    first, second, third = told(b"before\n", TRACE.encode(), b"after\n")
    assert (first["message"], third["message"]) == ("before", "after")
    assert (second["level"], second["message"]) == ("error", "ValueError: no")
    assert second["exception"] == TRACE.rstrip("\n")


def test_a_traceback_that_breaks_off_is_told_too() -> None:
    [line] = told(TRACE.partition("\n\n")[0].encode())
    assert line["level"] == "error"
    assert line["exception"].endswith("f()")


def test_lines_of_our_formatter_pass_and_learn_their_worker() -> None:
    own = json_lines.render("x", level="debug", logger="a.b", worker=1, more=[1])
    assert told(own.encode() + b"\n") == [json.loads(own)]
    other = json_lines.render("x", level="debug", logger="a.b")
    assert told(other.encode() + b"\n")[0]["worker"] == 3


@pytest.mark.parametrize("text", ['{"a": 1}', "{", "[1]", '"x"', "7", '{"message": "x"} y'])
def test_json_of_others_is_a_message(text: str) -> None:
    assert told(text.encode() + b"\n")[0]["message"] == text


def test_of_a_bar_of_progress_only_its_last_state_is_told() -> None:
    assert [line["message"] for line in told(b"10%\r", b"50%\r100%\r\ndone\r\n")] == [
        "100%",
        "done",
    ]


def test_bytes_that_are_no_text_and_lines_without_end_are_told() -> None:
    assert told(b"\xff\x00\x1b[2J\n")[0]["message"] == "\ufffd\x00\x1b[2J"
    endless = told(b"x" * (MAX_LINE_BYTES + 1), b"y\n")
    assert [len(line["message"]) for line in endless] == [MAX_LINE_BYTES + 1, 1]


@pytest.fixture(name="running")
def _running() -> Iterator[tuple[int, int]]:
    """A relay's ends: to write into, and to read from."""
    (taken, write), (read, out) = os.pipe(), os.pipe()
    thread = threading.Thread(target=relay, args=({taken: Stream(0)}, LogEnd(out)))
    thread.start()
    yield write, read
    for fd in (write, read):
        os.close(fd)
    thread.join(10)
    assert not thread.is_alive()
    for fd in (taken, out):
        os.close(fd)


def test_a_traceback_without_an_end_is_not_held_back(running: tuple[int, int]) -> None:
    """As that of a process that is killed amid it, while others live on."""
    write, read = running
    os.write(write, TRACE.partition("\n\n")[0].encode() + b"\n")
    assert json.loads(os.read(read, 65536))["level"] == "error"


def test_a_log_that_nobody_takes_holds_nobody_up() -> None:
    """Its reader is gone: engines write on."""
    command = [sys.executable, "-m", "gpupool.log_relay"]
    (taken, write), (read, out) = os.pipe(), os.pipe()
    with subprocess.Popen([*command, f"0:{taken}"], stderr=out, pass_fds=[taken]) as process:
        for fd in (read, out, taken):
            os.close(fd)
        for _ in range(100):
            os.write(write, b"x" * 9000 + b"\n")
        os.close(write)
        assert process.wait(10) == 0


ODD = (
    {"at": "noon"},
    {"self": 1},
    {"message": {"a": [1]}, "level": 5},
    {"line": 1, "more": 2, "stream": 3},
)


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: "-".join(odd))
def test_whatever_fields_an_engine_writes_the_relay_lives_on(odd: dict[str, Any]) -> None:
    """As if a model's answer, or a tool's log, looked like a line of ours."""
    written = {"time": "t", "level": "info", "logger": "x", "message": "m"} | odd
    [found, after] = told(json.dumps(written).encode() + b"\nafter\n")
    assert found == written | {"worker": 3}
    assert after["message"] == "after"


def test_brackets_without_end_are_a_message() -> None:
    text = b'{"a": ' + b"[" * 100_000
    assert len(told(text + b"\n")[0]["message"]) == len(text)


def test_the_last_words_of_the_dead_are_not_its_successors_first(running: tuple[int, int]) -> None:
    """Though the pipe stays open, and others write all the time."""
    write, read = running
    os.write(write, b"out of mem")
    assert json.loads(os.read(read, 65536))["message"] == "out of mem"
    os.write(write, b"hello\n")
    assert json.loads(os.read(read, 65536))["message"] == "hello"


def test_a_busy_worker_does_not_hold_back_what_another_began() -> None:
    (taken, write), (busy, chatter), (read, out) = os.pipe(), os.pipe(), os.pipe()
    thread = threading.Thread(target=relay, args=({taken: Stream(0), busy: Stream(1)}, LogEnd(out)))
    thread.start()
    os.write(write, b"out of mem")
    until, found = time.monotonic() + 5, []
    with open(read, "rb") as lines:
        while time.monotonic() < until and "out of mem" not in found:
            os.write(chatter, b"x\n")
            found.append(json.loads(lines.readline())["message"])
            time.sleep(0.05)
        for fd in (chatter, write):
            os.close(fd)
        thread.join(10)
    for fd in (taken, busy, out):
        os.close(fd)
    assert found[-1] == "out of mem"


def test_a_reader_that_sleeps_holds_nobody_up_and_learns_what_it_missed() -> None:
    """It is there, and takes nothing: of 5,000 lines a pipe holds a few hundred."""
    number, text = 5000, b"y" * 150
    command = [sys.executable, "-m", "gpupool.log_relay"]
    (taken, write), (read, out) = os.pipe(), os.pipe()
    with subprocess.Popen([*command, f"0:{taken}"], stderr=out, pass_fds=[taken]) as process:
        for fd in (out, taken):
            os.close(fd)
        began = time.monotonic()
        for _ in range(number):
            os.write(write, text + b"\n")
        assert time.monotonic() - began < 5
        with open(read, "rb") as awake:
            found = [json.loads(awake.readline())]
            while not found[-1]["message"].startswith("lines dropped here"):
                found.append(json.loads(awake.readline()))
            os.write(write, b"last\n")
            os.close(write)
            found += map(json.loads, awake)
        assert process.wait(10) == 0
    dropped = [line["message"] for line in found if line["logger"] == "gpupool.log_end"]
    num_dropped = sum(int(message.rpartition(" ")[2]) for message in dropped)
    assert len(found) - len(dropped) + num_dropped == number + 1
    assert num_dropped > number / 2
    assert found[-1]["message"] == "last"
