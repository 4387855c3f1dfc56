"""What systemd hears of the pool: ready, reloading, stopping, and how it stands (master process).

The protocol is that of sd_notify(3). gunicorn's own sd_notify is not used: it reads the variable
that must not reach workers and engines, waits while systemd is busy, and does not tell whether
the message was taken, so that a lost READY=1 could not be sent again.
"""

from __future__ import annotations

import logging
import os
import socket
import time

from gpupool.scoreboard import Row, Scoreboard
from gpupool.settings import Settings

log = logging.getLogger(__name__)

EXTENSION_S = 60  # each extension of a timeout ends this long after it was sent
EXTEND_EVERY_S = 10
TEARDOWN_S = 30  # what engines may take to end after the requests' grace period
SHOWN_STATES = ("loading", "starting", "waiting", "draining", "failed", "quarantined")
UNFINISHED_STATES = ("loading", "starting", "waiting")
MAX_STATUS_CHARS = 400


class Notifier:
    """One of the master's attendants; says nothing where no service manager listens.

    `turn` comes from the master's main loop alone, so that a master that hangs falls silent
    and systemd's watchdog restarts it.
    """

    def __init__(
        self,
        settings: Settings,
        scoreboard: Scoreboard,
        address: str | None = None,
        watchdog_s: float = 0.0,
    ) -> None:
        self._quorum = settings.ready_quorum
        self._grace_s = settings.graceful_timeout_s
        self._scoreboard = scoreboard
        self._address = address
        self._watchdog_s = watchdog_s
        self._wanted = self._told = "starting"
        self._status = ""
        self._next_extension = self._next_watchdog = 0.0

    @classmethod
    def from_environment(cls, settings: Settings, scoreboard: Scoreboard) -> Notifier:
        """Take systemd's variables out of the environment: whatever else held them, gunicorn's
        start, a worker or an engine, could declare the service ready or stopped."""
        address = os.environ.pop("NOTIFY_SOCKET", None) or None
        watchdog_usec = os.environ.pop("WATCHDOG_USEC", "")
        watchdog_pid = os.environ.pop("WATCHDOG_PID", "")
        is_ours = watchdog_usec.isdecimal() and watchdog_pid in ("", str(os.getpid()))
        watchdog_s = int(watchdog_usec) / 1e6 if is_ours else 0.0
        return cls(settings, scoreboard, address, watchdog_s)

    def turn(self) -> None:
        """Tell what is new; never blocks and never raises."""
        if self._address is None:
            return
        rows = [self._row_of(slot) for slot in range(self._scoreboard.num_slots)]
        if self._wanted == "starting" and sum(row.is_ready for row in rows) >= self._quorum:
            self._wanted = "ready"
        self._tell_state()
        self._tell_status(render_status(rows))
        now = time.monotonic()
        is_busy = any(row.state in UNFINISHED_STATES for row in rows)
        if (self._told == "starting" and is_busy) or self._told == "reloading":
            self._extend(now)
        if self._watchdog_s and now >= self._next_watchdog and self._send("WATCHDOG=1"):
            self._next_watchdog = now + self._watchdog_s / 2

    def reloading(self) -> None:
        """The pool begins to reload; a service that is not up yet just goes on starting."""
        if self._wanted == "ready":
            self._wanted = "reloading"
            self._tell_state()

    def reloaded(self) -> None:
        """The reload is over, well or not: the pool serves."""
        if self._wanted == "reloading":
            self._wanted = "ready"
            self._tell_state()

    def stop(self) -> None:
        """The pool begins to end. One message has to cover the whole drain: the main loop does
        not turn meanwhile. systemd's watchdog rests from here on."""
        self._wanted = "stopping"
        self._tell_state()

    def _tell_state(self) -> None:
        """Send what systemd takes for the state; tried again by the next turn if it did not
        arrive."""
        if self._wanted != self._told and self._send(self._render_state()):
            self._told = self._wanted

    def _render_state(self) -> str:
        if self._wanted == "ready":
            return "READY=1"
        if self._wanted == "reloading":
            return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"
        left_s = self._grace_s + TEARDOWN_S
        num_running = sum(row.running + row.waiting for row in self._scoreboard if row.pid)
        status = f"stopping; {num_running} running, {self._grace_s} s to finish"
        return f"STOPPING=1\nSTATUS={status}\nEXTEND_TIMEOUT_USEC={left_s * 1_000_000}"

    def _extend(self, now: float) -> None:
        """A load or a reload may take as long as it likes, as long as the master lives."""
        if now >= self._next_extension and self._send(
            f"EXTEND_TIMEOUT_USEC={EXTENSION_S * 1_000_000}"
        ):
            self._next_extension = now + EXTEND_EVERY_S

    def _tell_status(self, status: str) -> None:
        if status != self._status and self._send(f"STATUS={status}"):
            self._status = status

    def _row_of(self, slot: int) -> Row:
        """The row that speaks for a slot: while a reload has two workers there, the ready one."""
        rows = [self._scoreboard[index] for index in self._scoreboard.rows_of(slot)]
        return min(rows, key=lambda row: (not row.is_ready, row.pid == 0))

    def _send(self, message: str) -> bool:
        """Whether systemd has it. A full queue is no error: it is sent again later."""
        if self._address is None:
            return False
        is_abstract = self._address.startswith("@")
        address = f"\0{self._address[1:]}" if is_abstract else self._address
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            with socket.socket(socket.AF_UNIX, kind) as sender:
                sender.sendto(message.encode(), address)
        except OSError as error:
            log.debug("systemd did not take %r: %s", message, error)
            return False
        return True


def render_status(rows: list[Row]) -> str:
    """One line for `systemctl status`; the time is in tens of seconds, so that it changes little.

    Such as "2 of 4 ready, 1 loading (reading weights, 40 s), 1 failed: out of memory".
    """
    parts = [f"{sum(row.is_ready for row in rows)} of {len(rows)} ready"]
    silent = [row for row in rows if row.state == "ready" and not row.is_ready]
    if silent:
        parts.append(f"{len(silent)} without a heartbeat")
    for state in SHOWN_STATES:
        those = [row for row in rows if row.state == state]
        if those:
            parts.append(f"{len(those)} {state}{_detail(those[0])}")
    line = " ".join(", ".join(parts).split())
    return line if len(line) <= MAX_STATUS_CHARS else f"{line[: MAX_STATUS_CHARS - 3]}..."


def _detail(row: Row) -> str:
    """What is worth knowing of the first worker in a state."""
    if row.state == "loading":
        tens_s = int(time.monotonic() - row.since) // 10 * 10
        return f" ({row.phase or 'starting the engine'}, {tens_s} s)"
    text = (row.last_error or row.phase) if row.state == "failed" else row.phase
    return f": {text}" if text else ""
