"""A pool's log: its last lines, one worker's lines, and what is still to come (`logs`)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpupool import json_lines
from gpupool.log_keeper import NUM_KEPT, numbered

PREFIX = re.compile(r"\[[^\]]*\] \[(\d+)\] \[[A-Z]+\] (.*)")
OF_WORKER = re.compile(r"\bworker[ =](\d+)\b")
WORKERS_PID = re.compile(r"\bworker[ =](\d+) pid=(\d+)\b")


class WorkerFilter:
    """Lets one worker's lines through: its own, and the master's that name it.

    Learns from the lines which process is which worker, so it has to see a log from its start. A
    line without a head, as engines write them, belongs to the line before it.
    """

    def __init__(self, worker: int) -> None:
        self._worker = worker
        self._slot_of: dict[int, int] = {}
        self._is_shown = False

    def keeps(self, line: str) -> bool:
        """Whether the next line is that worker's."""
        if (fields := json_lines.parse(line)) is not None and "worker" in fields:
            return self._worker in (fields["worker"], _named_by_master(fields))
        head = PREFIX.match(line)
        if head is None:
            return self._is_shown
        pid, text = int(head[1]), head[2]
        if (named := WORKERS_PID.search(text)) is not None:
            self._slot_of[int(named[2])] = int(named[1])
        named = OF_WORKER.search(text)
        if named is not None and f"worker={named[1]}" in text:
            self._slot_of[pid] = int(named[1])  # only workers write it so, of themselves
        slot = self._slot_of.get(pid, int(named[1]) if named else None)
        self._is_shown = slot == self._worker
        return self._is_shown


def _named_by_master(fields: dict[str, Any]) -> int | None:
    named = OF_WORKER.search(str(fields["message"])) if fields["worker"] is None else None
    return int(named[1]) if named else None


class Everything:
    """Lets every line through."""

    def keeps(self, line: str) -> bool:
        """Yes."""
        return True


def read_lines(log: Path, until: int) -> Iterator[str]:
    """The log from its oldest part on, as far as it had come to at that byte."""
    for number in range(NUM_KEPT, 0, -1):
        try:
            with numbered(log, number).open(errors="replace") as file:
                yield from file
        except FileNotFoundError:
            continue
    with log.open("rb") as newest:
        while newest.tell() < until and (line := newest.readline()):
            yield line.decode(errors="replace")


class Follower:
    """Reads what is appended to a log from now on, over the moments at which it is cut."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self.at = log.stat().st_size
        self._rest = b""

    def new_lines(self) -> Iterator[str]:
        """Whole lines that came since the last call."""
        with self._log.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self.at:
                # It was copied to LOG.1 and cut; the end of the copy was not read yet.
                with numbered(self._log, 1).open("rb") as copy:
                    copy.seek(self.at)
                    self._rest += copy.read()
                self.at = 0
            file.seek(self.at)
            found = file.read()
        self.at += len(found)
        *lines, self._rest = (self._rest + found).split(b"\n")
        yield from (line.decode(errors="replace") + "\n" for line in lines)
