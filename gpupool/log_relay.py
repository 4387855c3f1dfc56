"""Makes JSON lines of whatever is written to a pool's stdout and stderr without our loggers: by
engines, their processes, C libraries, and Python itself when it ends of an error.

A process of its own (`python -m` this module), started by the master in log_pipes, so that the last
words of a worker that was killed are read too. Given as SLOT:FD are the pipes of the workers, and
as -:FD the master's; it ends when nobody is left who could write. Standard library only.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from gpupool import json_lines
from gpupool.log_end import LogEnd

MAX_LINE_BYTES = 1 << 20
MAX_TRACE_LINES = 500
PATIENCE_S = 1.0
"""What began and does not go on so long is told as it is."""
LOGGER = "output"
TRACE = "Traceback (most recent call last):"
VLLM = re.compile(
    r"(?:\(\S+ pid=(?P<pid>\d+)\) )?(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) "
    r"\d\d-\d\d \d\d:\d\d:\d\d \[[^\]]+\] (?P<message>.*)"
)


class Stream:
    """What comes out of one pipe: bytes in, whole JSON lines out."""

    def __init__(self, worker: int | None) -> None:
        self._worker = worker
        self._rest = b""
        self._trace: list[str] = []
        self._fed_at = time.monotonic()

    def feed(self, data: bytes) -> Iterator[str]:
        """What is complete now."""
        self._fed_at = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            yield from self._take(_text_of(line))

    def flush(self) -> Iterator[str]:
        """What will not be completed."""
        rest, self._rest = self._rest, b""
        if rest:
            yield from self._take(_text_of(rest))
        yield from self._end_trace()

    def flush_old(self) -> Iterator[str]:
        """A traceback or a line whose end does not come: of a worker that died amid it, say, whose
        successor writes into the same pipe."""
        if (self._rest or self._trace) and time.monotonic() - self._fed_at >= PATIENCE_S:
            yield from self.flush()

    def _take(self, line: str) -> Iterator[str]:
        if self._trace and (not line or line[0].isspace()) and len(self._trace) < MAX_TRACE_LINES:
            self._trace.append(line)
        elif self._trace:
            yield from self._end_trace(line)
        elif line == TRACE:
            self._trace.append(line)
        elif line.strip():
            yield self._render(line)

    def _end_trace(self, last: str | None = None) -> Iterator[str]:
        """A traceback is one line here; its message is its own last one."""
        if not self._trace:
            return
        lines, self._trace = self._trace, []
        if last is not None:
            lines.append(last)
        yield self._say(lines[-1], level="error", exception="\n".join(lines))

    def _render(self, line: str) -> str:
        if (found := json_lines.parse(line)) is not None:
            if found.get("worker") is not None:
                return line
            return json_lines.render_fields(found | {"worker": self._worker})
        if (of_vllm := VLLM.fullmatch(line)) is not None:
            pid = {"pid": int(of_vllm["pid"])} if of_vllm["pid"] else {}
            level = of_vllm["level"].lower()
            return self._say(of_vllm["message"], level=level, logger="vllm", **pid)
        return self._say(line)

    def _say(self, message: str, **more: Any) -> str:
        fields = {"level": "info", "logger": LOGGER, "worker": self._worker} | more
        return json_lines.render(message, **fields)


def _text_of(line: bytes) -> str:
    """Of a bar of progress, which paints over itself, only its last state."""
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")


def relay(streams: dict[int, Stream], out: LogEnd) -> None:
    """Until nobody can write any more. Lines that nobody takes are dropped: an engine must not
    wait for a log."""
    with selectors.DefaultSelector() as selector:
        for fd, stream in streams.items():
            selector.register(fd, selectors.EVENT_READ, stream)
        while selector.get_map():
            ready = selector.select(PATIENCE_S)
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                write(out, key.data.feed(data) if data else key.data.flush())
                if not data:
                    selector.unregister(key.fd)
            # Also while others write on and on.
            for key in selector.get_map().values():
                write(out, key.data.flush_old())
            out.tell()


def write(out: LogEnd, lines: Iterator[str]) -> None:
    """Each line at once, so that none is torn by another process's."""
    for line in lines:
        out.write(f"{line}\n")


def main() -> None:
    """Ctrl-C and a closing terminal are for the master, whose end ends this."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    streams = {}
    for word in sys.argv[1:]:
        slot, _, fd = word.partition(":")
        streams[int(fd)] = Stream(None if slot == "-" else int(slot))
    relay(streams, LogEnd(sys.stderr.fileno()))


if __name__ == "__main__":
    main()
