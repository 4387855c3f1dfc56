"""Where lines leave: what becomes of them if nobody takes them, or if there is no room."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from gpupool.json_lines import render
from gpupool.log_end import LogEnd


def line(message: str) -> str:
    return render(message, level="info", logger="x", worker=1) + "\n"


@pytest.fixture(params=["pipe", "socket"], name="ends")
def _ends(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """To read from, and what a process was given as its stderr: a shell's, or systemd's."""
    if request.param == "pipe":
        read, out = os.pipe()
    else:
        read, out = (end.detach() for end in socket.socketpair())
    yield read, out
    os.close(read)
    os.close(out)


def read_now(fd: int) -> bytes:
    """All that is there."""
    os.set_blocking(fd, False)
    found = b""
    while True:
        try:
            found += os.read(fd, 1 << 20)
        except BlockingIOError:
            return found


def test_who_logs_waits_once_for_a_reader_that_sleeps(ends: tuple[int, int]) -> None:
    read, out = ends
    number = 20_000
    with closing(LogEnd(out)) as end:
        began = time.monotonic()
        for _ in range(number):
            end.write(line("y" * 40))
        assert time.monotonic() - began < 3
        assert os.get_blocking(out)  # whoever else has it is not changed
        first = read_now(read)
        end.write(line("awake"))
    *told, dropped, awake = map(json.loads, (first + read_now(read)).splitlines())
    assert awake["message"] == "awake"
    assert dropped["message"] == f"lines dropped here, as nobody took them: {number - len(told)}"


def test_a_long_line_that_began_is_ended_before_the_next(ends: tuple[int, int]) -> None:
    read, out = ends
    first = b""
    with closing(LogEnd(out)) as end:
        end.write(line("z" * 400_000))
        assert not end.tell()
        while not end.tell():
            first += read_now(read)
        end.write(line("next"))
    found = [json.loads(one)["message"] for one in (first + read_now(read)).splitlines()]
    assert found == ["z" * 400_000, "next"]


@contextmanager
def small_files(num_bytes: int) -> Iterator[None]:
    """As a disk that is full; only meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_half_a_line_on_a_full_disk_is_not_glued_to_the_next(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as log, closing(LogEnd(log.fileno())) as end:
        with small_files(200):
            end.write(line("first"))
            end.write(line("torn" * 100))
            end.write(line("no room"))
        end.write(line("room again"))
    first, _, dropped, again = (tmp_path / "log").read_text().splitlines()
    assert [json.loads(one)["message"] for one in (first, dropped, again)] == [
        "first",
        "lines dropped here, as nobody took them: 2",
        "room again",
    ]


READER_GONE = """
import os
from gpupool.log_end import LogEnd
read, out = os.pipe()
end = LogEnd(out)
os.close(read)
for _ in range(1000):
    end.write("x" * 200 + "\\n")
"""


def test_a_reader_that_is_gone_is_no_error() -> None:
    subprocess.run([sys.executable, "-c", READER_GONE], check=True, timeout=20)
