"""The gunicorn worker: boots its engine on a thread, reads requests on its main loop (worker).

A gthread worker whose connections are read by `intake` and whose engine is a `replica`. The
heartbeat is the main loop's, so a load may take as long as it likes. Overrides only the methods
that ThreadWorker and Worker offer; run() and handle_request() stay gunicorn's.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, ThreadWorker

from dispatcher import GPUDispatcher
from gpupool.api import CONTROL_PATHS, waits_for_model
from gpupool.boot import Boot
from gpupool.errors import EngineDead
from gpupool.http_error import send_error
from gpupool.intake import Connection, Intake
from gpupool.replica import Replica
from gpupool.room import Room
from gpupool.scoreboard import Row, Scoreboard
from gpupool.settings import Settings

log = logging.getLogger(__name__)

ENGINE_FAILED = 70  # the row's last_error says why
SIGNALS_HELD = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT, signal.SIGABRT, signal.SIGUSR1)
"""Blocked by the master round the fork, until the worker has its own handlers."""
NUM_CONTROL_THREADS = 4
SEND_TIMEOUT_S = 60
CONTROL_SEND_TIMEOUT_S = 2  # a few kilobytes; a client that does not take them must not hold one
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
CHECK_PERIOD_S = 0.5
EXAMPLE = (
    '{"instances": ["The capital of France is"], "params": {"max_tokens": 16, "temperature": 0}}'
)


def log_first_ready(settings: Settings) -> None:
    """Say where the pool is, and a line that works."""
    url = f"http://{settings.host}:{settings.port}"
    key = " -H 'Authorization: Bearer YOUR_KEY'" if settings.api_key else ""
    log.info("Running on %s", url)
    log.info(
        "try: curl -s %s/infer -H 'Content-Type: application/json'%s -d '%s'",
        url,
        key,
        EXAMPLE,
    )


class PoolWorker(ThreadWorker):  # type: ignore[misc]
    """One worker: one slice, one engine. The hooks of gunicorn_conf.py call claim (master) and
    settle (worker); everything after that happens here."""

    settings: Settings
    boot: Boot
    alive: bool
    replica: Replica
    row: Row
    row_index = 0
    slot = 0
    exit_code = 0

    def claim(self, index: int, scoreboard: Scoreboard) -> None:
        """Take a row of the scoreboard, and so its slot. Runs in the master, before the fork."""
        self.row_index, self.scoreboard, self.row = index, scoreboard, scoreboard[index]
        self.slot = self.row.slot
        scoreboard.claim(index)

    def settle(self, settings: Settings, dispatcher: GPUDispatcher) -> None:
        """First steps after the fork, while there is one thread.

        gunicorn answers an exception here by stopping the whole service, so none leaves.
        """
        self.settings = settings
        try:
            mine = self.row_index
            other = next(i for i in self.scoreboard.rows_of(self.slot) if i != mine)
            predecessor = self.scoreboard[other]
            self.boot = Boot(self.slot, self.row, predecessor, settings, dispatcher)
        except Exception as error:
            log.exception("worker %d could not settle", self.slot)
            self.row.describe(last_error=f"{type(error).__name__}: {error}")
            os._exit(ENGINE_FAILED)

    # The life of the process.

    def init_process(self) -> None:
        """Runs gunicorn's whole worker life; returns when the worker is done."""
        self.control_pool = ThreadPoolExecutor(NUM_CONTROL_THREADS, "control")
        super().init_process()

    def init_signals(self) -> None:
        """gunicorn's handlers; what came since the fork arrives now. A SIGHUP or SIGUSR2 that was
        meant for the master would end the worker."""
        super().init_signals()
        for number in (signal.SIGHUP, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS_HELD)

    def get_thread_pool(self) -> ThreadPoolExecutor:
        """Handler threads, made as they are needed."""
        return ThreadPoolExecutor(self.cfg.threads, "request")

    def load_wsgi(self) -> None:
        """Import the application, which loads no engine."""
        super().load_wsgi()
        self.wsgi.extensions["gpupool.scoreboard"] = self.scoreboard
        self.replica = self.wsgi.extensions["gpupool"]
        self.replica.adopt(self.settings)
        self.replica.on_change = lambda: self.method_queue.defer(self._publish)

    def run(self) -> None:
        """Serve until told to stop; the engine boots meanwhile."""
        self.intake = Intake(
            self.poller,
            on_request=self.admit,
            on_close=self._hang_up,
            max_body_bytes=self.settings.max_body_bytes,
            read_timeout_s=self.settings.read_timeout_s,
            idle_timeout_s=self.settings.keepalive_s,
        )
        self.room = Room(self.settings.max_wait_s)
        self._drain_by = float("inf")
        self._next_check = 0.0
        if self.alive:
            self.boot.start(self.replica, on_failed=self._leave)
        super().run()
        if not self.exit_code:
            self.row.enter("draining")  # so the master knows that this end was asked for
        self.replica.close()
        if self.exit_code:
            sys.exit(self.exit_code)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Stop at once; the guardian ends the engine's processes."""
        self.row.enter("draining")
        self.cfg.worker_int(self)
        os._exit(0)

    def _leave(self) -> None:
        """Finish what runs and make room for a successor."""
        self.exit_code = ENGINE_FAILED
        self.handle_exit(None, None)

    # Connections and requests, on the main loop.

    def accept(self, listener: Any) -> None:
        """Take one connection; it costs no thread before its request is whole."""
        try:
            sock, client = listener.accept()
        except OSError as error:
            if error.errno in OUT_OF_FILES:
                # The listener stays readable: look away until the next turn of the loop.
                log.warning("worker %d cannot accept: %s", self.slot, error.strerror)
                super().set_accept_enabled(False)
            elif error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return
        self.nr_conns += 1
        self.intake.watch(Connection(self.cfg, sock, client, listener.getsockname(), self.intake))

    def enqueue_req(self, conn: Connection) -> None:
        """A kept-alive connection has bytes: read on (gthread would take a thread here)."""
        self.intake.read(conn)

    def admit(self, conn: Connection) -> None:
        """Decide what happens to a whole request: run now, or wait for the model."""
        request = conn.parser.request
        is_coming = self.replica.is_coming
        if request is None or request.path in CONTROL_PATHS:
            conn.limit_send(CONTROL_SEND_TIMEOUT_S)
            self._submit(self.control_pool, conn)
        elif is_coming and self.alive and waits_for_model(request.method, request.path):
            self.room.add(conn)
        else:
            conn.limit_send(SEND_TIMEOUT_S)
            self._submit(self.tpool, conn)

    def _submit(self, pool: ThreadPoolExecutor, conn: Connection) -> None:
        self.row.running += 1
        future = pool.submit(self.handle, conn)
        future.add_done_callback(
            lambda done: self.method_queue.defer(self.finish_request, conn, done)
        )

    def finish_request(self, conn: Connection, fs: Future[Any]) -> None:
        """A handler thread is done with its request."""
        self.row.running -= 1
        self.row.served += 1
        super().finish_request(conn, fs)

    def _hang_up(self, conn: Connection) -> None:
        self.nr_conns -= 1
        conn.close()

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answer what went wrong outside the application in the one error shape, never HTML."""
        send_error(client, exc)

    # What the main loop does each turn.

    def is_parent_alive(self) -> bool:
        """Without a master this worker drains at once, as after SIGTERM."""
        self.alive = super().is_parent_alive() and self.alive
        return bool(self.alive)

    def set_accept_enabled(self, enabled: bool) -> None:
        """Leave new connections to the siblings while they can answer and this worker cannot.
        gthread asks again on every turn."""
        super().set_accept_enabled(enabled and self._may_accept())

    def _may_accept(self) -> bool:
        return self.replica.state == "ready" or self.scoreboard.num_ready() == 0

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """One turn of the loop."""
        if self._accepting and not self._may_accept():
            super().set_accept_enabled(False)
        super().wait_for_and_dispatch_events(timeout)
        self.row.heartbeat = time.monotonic()

    def murder_pending(self) -> None:
        """Once a turn: deadlines, and whether the engine still lives."""
        if not self.alive and self._drain_by == float("inf"):
            self._begin_drain()
        self.intake.expire(drain=time.monotonic() >= self._drain_by)
        for conn in self.room.take_expired():
            self._submit(self.tpool, conn)
        if self.alive and time.monotonic() >= self._next_check:
            self._next_check = time.monotonic() + CHECK_PERIOD_S
            self._check()
        self.row.waiting = len(self.room)

    def _begin_drain(self) -> None:
        self.boot.stop()
        self._drain_by = time.monotonic() + STOP_KEEPALIVE_LINGER
        if self.replica.state == "ready":
            self.replica.enter("draining")
        self._leave_room()

    def _check(self) -> None:
        """Leave if the engine died, or if others may take the GPUs."""
        engine = self.replica.engine
        reason = engine.dead_reason if engine is not None else None
        if self.replica.state == "ready" and reason is not None:
            self.replica.fail(EngineDead(reason))
        else:
            reason = self.boot.trouble()
        if reason is not None:
            log.error("worker %d leaves: %s", self.slot, reason)
            self.row.describe(last_error=reason)
            self._leave()

    def _publish(self) -> None:
        """The replica changed: tell the siblings, and let the waiting requests go."""
        replica = self.replica
        if self.row.state != replica.state:
            self.row.enter(replica.state)
            if replica.state == "ready" and self.scoreboard.num_ready() == 1:
                log_first_ready(self.settings)
        self.row.describe(phase=replica.phase)
        self.row.fraction = -1.0 if replica.fraction is None else replica.fraction
        if not replica.is_coming:
            self._leave_room()

    def _leave_room(self) -> None:
        for conn in self.room.take_all():
            self._submit(self.tpool, conn)
