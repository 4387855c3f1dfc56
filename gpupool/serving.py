"""The part of the worker that serves: connections, requests, handler threads (worker).

Overrides only the methods that gunicorn's ThreadWorker offers; run() and handle_request() stay its
own. `intake` reads, `admission` decides, this lets handler threads answer.
"""

from __future__ import annotations

import errno
import logging
import selectors
import socket
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from gpupool.access import AccessLog
from gpupool.admission import Admission
from gpupool.answer_socket import AnswerSocket
from gpupool.answering import AnsweringWorker
from gpupool.api import CONTROL_PATHS, tells_of_model, waits_for_model
from gpupool.connection import Connection
from gpupool.disconnect import HangupWatcher
from gpupool.fanout import Fanout
from gpupool.inquiry import Inquiry, tell
from gpupool.intake import Intake
from gpupool.key_limiter import KeyLimiter
from gpupool.lane import Lane
from gpupool.mailbox import Mailboxes, Message, close_all
from gpupool.scoreboard import Row, Scoreboard
from gpupool.slots import Slots
from gpupool.transfer import Transfer

log = logging.getLogger(__name__)

NUM_CONTROL_THREADS = 4
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class ServingWorker(AnsweringWorker):
    """Answers requests with a replica that somebody else loads. Main thread only, unless it says
    otherwise."""

    scoreboard: Scoreboard
    mailboxes: Mailboxes
    row: Row
    row_index = 0
    slot = 0
    keepalived_conns: deque[Connection]
    wsgi: Any

    # Before the first request.

    def init_process(self) -> None:
        """Runs gunicorn's whole worker life; returns when the worker is done."""
        self.control_pool = ThreadPoolExecutor(NUM_CONTROL_THREADS, "control")
        super().init_process()

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
        self.access = AccessLog(self.slot, is_on=self.settings.access_log == "on")
        self.app.extensions["gpupool.access"] = self.access
        self.replica.adopt(self.settings)

    def open_for_requests(self) -> None:
        """Make what requests go through; the poller is there."""
        self.keys = self.replica.keys
        self.replica.before_ready = self.make_front
        self.slots = Slots(self.row)
        self.slots.on_free = self._settle_soon
        self.fanout = self.app.extensions["gpupool.fanout"] = Fanout(
            self.replica,
            self.row_index,
            self.scoreboard,
            self.mailboxes,
            self.settings.max_wait_s,
        )
        self.app.extensions["gpupool.inquiry"] = Inquiry(
            self.scoreboard, self.row_index, self.mailboxes
        )
        self.limiter = KeyLimiter(self.settings, self.keys, self.scoreboard, self.row_index)
        self.admission = Admission(
            self,
            self.row_index,
            self.scoreboard,
            self.mailboxes,
            self.slots,
            HangupWatcher(self.poller),
            Transfer(self, self.row_index, self.scoreboard, self.mailboxes, self.limiter),
            max_wait_s=self.settings.max_wait_s,
            max_waiting=self.settings.max_waiting,
        )
        self.poller.register(
            self.mailboxes.receiver(self.row_index),
            selectors.EVENT_READ,
            self.open_mailbox,
        )
        self.intake = Intake(
            self.poller,
            on_request=self.admit,
            on_close=self.hang_up,
            max_body_bytes=self.settings.max_body_bytes,
            read_timeout_s=self.settings.read_timeout_s,
            idle_timeout_s=self.settings.keepalive_s,
            cors_origins=self.settings.cors_origin,
        )

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
        self._make_room()
        return True

    def _make_room(self) -> None:
        """At the limit of connections gthread stops to accept, and beyond it files run out: who
        says nothing must not keep out those who ask."""
        for _ in range(self.nr_conns - self.worker_connections + 1):
            self._close_oldest_idle()

    def _close_oldest_idle(self) -> None:
        if self.keepalived_conns:
            conn = self.keepalived_conns.popleft()
            self.poller.unregister(conn.sock)
            self.hang_up(conn)
        else:
            self.intake.drop_oldest_idle()

    def adopt(self, sock: socket.socket, client: Any, server: Any) -> Connection:
        """Take a connection, new or from a sibling."""
        self.nr_conns += 1
        return Connection(self.cfg, AnswerSocket.over(sock), client, server, self.intake)

    def enqueue_req(self, conn: Connection) -> None:
        """A kept-alive connection has bytes: read on (gthread would take a thread here)."""
        self.intake.read(conn)

    def admit(self, conn: Connection) -> None:
        """Decide what happens to a whole request: refuse it, run it now, or let it wait."""
        request = conn.parser.request
        if request is None or request.path in CONTROL_PATHS:
            self._answer_at_once(conn)
        elif request.method == "OPTIONS" or not self._has_key(conn):
            self.answer_by_flask(conn)
        elif waits_for_model(request.method, request.path):
            refused = self.limiter.begin(conn.history, request.headers)
            if refused is not None:
                self.refuse(conn, refused)
            else:
                self.admission.admit(conn)
        elif not tells_of_model(request.path) or not self.admission.leave_to_ready(conn):
            self.answer(conn)

    def _has_key(self, conn: Connection) -> bool:
        headers = conn.parser.request.headers
        if not self.keys.fit(headers):
            return False
        conn.history.seen.key_id = self.keys.id_of(headers)
        return True

    def finish_request(self, conn: Connection, fs: Future[Any]) -> None:
        """A handler thread is done with its request."""
        if conn.call.is_moved:
            self.check_engine()
            self.admission.move(conn)
            return
        self.limiter.end(conn.call)
        self.admission.finish(conn)
        super().finish_request(conn, fs)

    def hang_up(self, conn: Connection) -> None:
        """Close a connection; where it was handed over, only this process's end of it."""
        self.nr_conns -= 1
        self.limiter.let_go(conn.history)
        conn.close()

    def _settle_soon(self) -> None:
        """Slots are free again (any thread). One look at the room does for many of them."""
        if not self.admission.is_settle_due:
            self.admission.is_settle_due = True
            self.method_queue.defer(self.admission.settle)

    # Siblings.

    def open_mailbox(self, _: Any) -> None:
        """A sibling has sent something."""
        self.admission.open_mailbox(self.row_index)
        self._make_room()

    def open_lane(self, sock: socket.socket, copy: Message) -> None:
        """Serve a sibling's batch on a thread of its own; it counts as a connection, so that a
        draining worker stays for it."""
        try:
            lane = Lane(sock, self.replica, self.slots, self.totals)
        except OSError as error:
            log.error("worker %d takes no part in a batch: %s", self.slot, error)
            sock.close()
            close_all(copy.fds)
            return
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

    def tell_metrics(self, sock: socket.socket) -> None:
        """A sibling is scraped and asks what this worker's engine tells."""
        self.control_pool.submit(tell, sock, self.replica)

    def open_orphaned_mailboxes(self) -> None:
        """A worker may have died with messages unread."""
        for index, row in enumerate(self.scoreboard):
            if not row.pid:
                self.admission.open_mailbox(index)
        self._make_room()

    def leave_to_siblings(self) -> None:
        """Before the end: nobody is left behind who is in the listener's queue, who waits, or who
        may send again."""
        self._accept_the_queued()
        self.admission.settle()
        for conn in self.intake.take_idle():
            if not self.admission.hand_over_unread(conn):
                self.intake.watch(conn)
        self._hand_over_kept_alive()
        for conn in self.intake.take_unfinished():
            if not self.admission.hand_over_unread(conn):
                self.intake.read_on(conn)

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
            if not self.admission.hand_over_unread(conn):
                kept.append(conn)
                self.poller.register(
                    conn.sock,
                    selectors.EVENT_READ,
                    partial(self.on_client_socket_readable, conn),
                )
        self.keepalived_conns = kept
