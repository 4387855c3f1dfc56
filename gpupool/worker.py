"""The gunicorn worker: boots its engine on a thread, reads requests on its main loop (worker).

A gthread worker whose connections are read by `intake` and whose engine is a `replica`. The
heartbeat is the main loop's, so a load may take as long as it likes. Overrides only the methods
that ThreadWorker and Worker offer; run() and handle_request() stay gunicorn's.
"""

from __future__ import annotations

import errno
import logging
import os
import selectors
import signal
import socket
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, ThreadWorker

from dispatcher import GPUDispatcher
from gpupool import call
from gpupool.admission import Admission
from gpupool.api import CONTROL_PATHS, waits_for_model
from gpupool.boot import Boot
from gpupool.disconnect import HangupWatcher
from gpupool.engine_watch import EngineWatch, end_hung_engine
from gpupool.errors import EngineDead, Moved, RequestError
from gpupool.fanout import Fanout
from gpupool.http_error import send_error
from gpupool.intake import Connection, Intake
from gpupool.keys import KeyRing
from gpupool.lane import Lane
from gpupool.mailbox import Mailboxes, Message, close_all
from gpupool.meter import Meter
from gpupool.replica import Replica
from gpupool.scoreboard import Row, Scoreboard
from gpupool.settings import Settings
from gpupool.slots import Slots

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
    keepalived_conns: deque[Connection]
    app: Any
    wsgi: Any
    admission: Admission
    slot = 0
    exit_code = 0

    def claim(self, index: int, scoreboard: Scoreboard, mailboxes: Mailboxes) -> None:
        """Take a row of the scoreboard, and so its slot. Runs in the master, before the fork."""
        self.row_index, self.scoreboard, self.row = index, scoreboard, scoreboard[index]
        self.mailboxes = mailboxes
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
        self.app = self.wsgi
        self.wsgi = self._call_app
        self.app.extensions["gpupool.scoreboard"] = self.scoreboard
        self.replica = self.app.extensions["gpupool"]
        self.totals = self.scoreboard.totals[self.row_index]
        self.app.extensions["gpupool.totals"] = self.totals
        self.replica.adopt(self.settings)
        self.replica.on_change = lambda: self.method_queue.defer(self._publish)

    def run(self) -> None:
        """Serve until told to stop; the engine boots meanwhile."""
        self.keys = KeyRing(self.settings.api_key)
        self.slots = Slots(self.row)
        self.slots.on_free = lambda: self.method_queue.defer(self.admission.settle)
        self.app.extensions["gpupool.fanout"] = Fanout(
            self.replica,
            self.row_index,
            self.scoreboard,
            self.mailboxes,
            self.settings.max_wait_s,
        )
        self.admission = Admission(
            self,
            self.row_index,
            self.scoreboard,
            self.mailboxes,
            self.slots,
            HangupWatcher(self.poller),
            max_wait_s=self.settings.max_wait_s,
            max_waiting=self.settings.max_waiting,
        )
        self.poller.register(
            self.mailboxes.receiver(self.row_index),
            selectors.EVENT_READ,
            self._open_mailbox,
        )
        self.intake = Intake(
            self.poller,
            on_request=self.admit,
            on_close=self.hang_up,
            max_body_bytes=self.settings.max_body_bytes,
            read_timeout_s=self.settings.read_timeout_s,
            idle_timeout_s=self.settings.keepalive_s,
        )
        self._drain_by = float("inf")
        self._next_check = 0.0
        self._is_hung = False
        self._watch = EngineWatch(self.settings.stall_timeout_s, lambda: self.row.gpus)
        if self.alive:
            self.boot.start(self.replica, on_failed=self._leave)
        Meter(self.scoreboard.vitals, self.row_index, lambda: self.boot.leased).start()
        super().run()
        if not self.exit_code:
            self.row.enter("draining")  # so the master knows that this end was asked for
        if not self._is_hung:
            self.replica.close()
        if self.exit_code:
            # An orderly end of the interpreter takes vLLM 2 to 5 s, in which the slice is not
            # free for the successor, and one with a thread that hangs never comes.
            os._exit(self.exit_code)

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

    def accept(self, listener: Any) -> bool:
        """Take one connection; it costs no thread before its request is whole. False: none."""
        try:
            sock, client = listener.accept()
        except OSError as error:
            if error.errno in OUT_OF_FILES:
                # The listener stays readable: look away until the next turn of the loop.
                log.warning("worker %d cannot accept: %s", self.slot, error.strerror)
                super().set_accept_enabled(False)
            elif error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return error.errno == errno.ECONNABORTED
        self.intake.watch(self.adopt(sock, client, listener.getsockname()))
        return True

    def adopt(self, sock: socket.socket, client: Any, server: Any) -> Connection:
        """Take a connection, new or from a sibling."""
        self.nr_conns += 1
        return Connection(self.cfg, sock, client, server, self.intake)

    def read(self, conn: Connection) -> None:
        """Read the next request of a connection that has bytes."""
        self.intake.read(conn)

    def open_lane(self, sock: socket.socket, copy: Message) -> None:
        """Serve a sibling's batch on a thread of its own; it counts as a connection, so that a
        draining worker stays for it."""
        lane = Lane(sock, self.replica, self.slots, self.totals)
        self.nr_conns += 1

        def serve() -> None:
            lane.serve()
            self.method_queue.defer(self._end_lane, lane, copy)

        threading.Thread(target=serve, name="lane", daemon=True).start()

    def _end_lane(self, lane: Lane, copy: Message) -> None:
        self.nr_conns -= 1
        if lane.is_orphaned and copy.fds:
            log.warning("a worker was killed amid a batch; worker %d answers it", self.slot)
            self.admission.take_over(copy)
        close_all(copy.fds)

    def keep(self, conn: Connection) -> None:
        """Wait for the next request of a connection that has none."""
        self.intake.watch(conn)

    def enqueue_req(self, conn: Connection) -> None:
        """A kept-alive connection has bytes: read on (gthread would take a thread here)."""
        self.intake.read(conn)

    def admit(self, conn: Connection) -> None:
        """Decide what happens to a whole request: run now, or wait for the model."""
        request = conn.parser.request
        if request is None or request.path in CONTROL_PATHS:
            self._answer_at_once(conn)
        elif waits_for_model(request.method, request.path) and self.keys.fit(request.headers):
            self.admission.admit(conn)
        else:
            self.answer(conn)

    def answer(self, conn: Connection) -> None:
        """Let a handler thread answer."""
        conn.limit_send(SEND_TIMEOUT_S)
        self._submit(self.tpool, conn)

    def refuse(self, conn: Connection, error: RequestError) -> None:
        """Answer with an error, past those who wait for a handler thread."""
        error.route = conn.parser.request.path
        conn.parser.error = error
        self._answer_at_once(conn)

    def _answer_at_once(self, conn: Connection) -> None:
        conn.limit_send(CONTROL_SEND_TIMEOUT_S)
        self._submit(self.control_pool, conn)

    def _submit(self, pool: ThreadPoolExecutor, conn: Connection) -> None:
        future = pool.submit(self._handle, conn)
        future.add_done_callback(
            lambda done: self.method_queue.defer(self.finish_request, conn, done)
        )

    def _call_app(self, environ: Any, start_response: Any) -> Any:
        answer = self.app(environ, start_response)
        if call.current_call().is_moved:
            raise Moved("another worker answers")  # nothing is sent yet
        return answer

    def _handle(self, conn: Connection) -> Any:
        with call.answering(conn.call):
            return self.handle(conn)

    def finish_request(self, conn: Connection, fs: Future[Any]) -> None:
        """A handler thread is done with its request."""
        if conn.call.is_moved:
            self._check()
            self.admission.move(conn)
            return
        self.row.served += 1
        self.admission.finish(conn)
        super().finish_request(conn, fs)

    def hang_up(self, conn: Connection) -> None:
        """Close a connection; where it was handed over, only this process's end of it."""
        self.nr_conns -= 1
        conn.close()

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answer what went wrong outside the application in the one error shape, never HTML."""
        if not isinstance(exc, Moved):
            route = req.path if req else getattr(exc, "route", "unreadable")
            send_error(client, exc, lambda status: self.totals.request(route, status))

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
        super().wait_for_and_dispatch_events(min(timeout, CHECK_PERIOD_S))
        self.row.heartbeat = time.monotonic()

    def murder_pending(self) -> None:
        """Once a turn: deadlines, and whether the engine still lives."""
        if not self.alive and self._drain_by == float("inf"):
            self._begin_drain()
        self.intake.expire(drain=time.monotonic() >= self._drain_by)
        self.admission.expire()
        self.admission.settle()
        if time.monotonic() >= self._next_check:
            self._next_check = time.monotonic() + CHECK_PERIOD_S
            self._open_orphaned_mailboxes()
            self._check_progress()
            if self.alive:
                self._check()

    def _open_mailbox(self, _: Any) -> None:
        if not self.exit_code:  # else it is the successor's
            self.admission.open_mailbox(self.row_index)

    def _open_orphaned_mailboxes(self) -> None:
        """A worker may have died with messages unread."""
        for index, row in enumerate(self.scoreboard):
            if not row.pid:
                self.admission.open_mailbox(index)

    def _begin_drain(self) -> None:
        """Leave nobody behind: who is in the listener's queue, who waits, who may send again."""
        self.boot.stop()
        self._drain_by = time.monotonic() + STOP_KEEPALIVE_LINGER
        if self.replica.state != "failed":
            self.replica.enter("draining")
        self._publish()
        if self.exit_code:
            self.admission.has_successor = True
            self.poller.unregister(self.mailboxes.receiver(self.row_index))
        self._accept_the_queued()
        self.admission.settle()
        for conn in self.intake.take_idle():
            if not self.admission.hand_over_idle(conn):
                self.intake.watch(conn)
        self._hand_over_kept_alive()

    def _accept_the_queued(self) -> None:
        """What the kernel has accepted would be reset when the last worker closes the listener."""
        for listener in self.sockets:
            listener.setblocking(False)
            while self.accept(listener):
                pass
            listener.close()

    def _hand_over_kept_alive(self) -> None:
        kept: deque[Connection] = deque()
        for conn in self.keepalived_conns:
            self.poller.unregister(conn.sock)
            if not self.admission.hand_over_idle(conn):
                kept.append(conn)
                self.poller.register(
                    conn.sock,
                    selectors.EVENT_READ,
                    partial(self.on_client_socket_readable, conn),
                )
        self.keepalived_conns = kept

    def _check_progress(self) -> None:
        """End an engine that hangs; its requests are answered, and then the worker leaves."""
        engine = self.replica.engine
        if engine is None or self.replica.state not in ("ready", "draining"):
            return
        reason = self._watch.find_trouble(engine)
        if reason is not None:
            self._is_hung = True
            log.error("worker %d leaves: %s", self.slot, reason)
            self.row.describe(last_error=reason)
            self.replica.fail(EngineDead(reason))
            end_hung_engine(engine, ENGINE_FAILED)
            self._leave()

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
        self.row.estimate_s = -1.0 if replica.estimate_s is None else replica.estimate_s
        if replica.engine is not None:
            self.row.slots = min(replica.engine.model.slots, self.settings.threads)
        self.admission.settle()
