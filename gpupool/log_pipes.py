"""With --log_format json: stdout and stderr of master and workers become pipes to log_relay, which
makes JSON of what others write there. Our own lines are JSON already and go straight to the real
stderr (master, and each worker from its fork on).
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache

from gpupool.json_lines import JsonFormatter
from gpupool.log_end import LogEnd

log = logging.getLogger(__name__)

RESTART_S = 5.0


@cache
def real_stderr() -> LogEnd:
    """What stderr was when it was first asked for."""
    return LogEnd(sys.stderr.fileno())


class LogPipes:
    """One of the master's attendants, for its whole life; the workers get their ends by the fork.

    The master keeps the ends that are read as well: a relay that was killed is started again, and
    meanwhile nobody's write fails. `children` is what the master does at the end of a child.
    """

    def __init__(self, num_slots: int, children: dict[int, Callable[[int], None]]) -> None:
        self._children = children
        self._pipes = [os.pipe() for _ in range(num_slots + 1)]  # the last is the master's
        self._start_at = 0.0
        self._is_running = False
        self._start()
        _divert(self._pipes[-1][1])

    def divert(self, slot: int) -> None:
        """In a worker: from now on what is written is this worker's."""
        JsonFormatter.worker = slot
        _divert(self._pipes[slot][1])

    def turn(self) -> None:
        """Start the relay again, if it ended."""
        if not self._is_running and time.monotonic() >= self._start_at:
            self._start()

    def stop(self) -> None:
        """The relay ends by itself, after everybody else."""

    def _start(self) -> None:
        slots = [*map(str, range(len(self._pipes) - 1)), "-"]
        ends = [read for read, _ in self._pipes]
        words = [f"{slot}:{fd}" for slot, fd in zip(slots, ends, strict=True)]
        self._start_at = time.monotonic() + RESTART_S
        try:
            # In a group of its own, so that Ctrl-C reaches the master alone.
            process = subprocess.Popen(
                [sys.executable, "-m", "gpupool.log_relay", *words],
                stdin=subprocess.DEVNULL,
                stdout=real_stderr().fileno(),
                stderr=real_stderr().fileno(),
                pass_fds=ends,
                process_group=0,
            )
        except OSError as error:
            log.error("the log relay cannot be started: %s", error)
            return
        self._is_running = True
        self._children[process.pid] = lambda status: self._note_end(process, status)

    def _note_end(self, process: subprocess.Popen[bytes], status: int) -> None:
        process.returncode = os.waitstatus_to_exitcode(status)
        self._is_running = False
        log.error("the log relay ended with %d and is started again", process.returncode)


def _divert(fd: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for number in (1, 2):
        os.dup2(fd, number)
