"""The gunicorn worker: boots its engine on a thread, reads requests on its main loop (worker).

A gthread worker whose connections are read by `intake` and whose engine is a `replica`. The
heartbeat is the main loop's, so a load may take as long as it likes. Overrides only the methods
that ThreadWorker and Worker offer; run() and handle_request() stay gunicorn's.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, ThreadWorker

from dispatcher import GPUDispatcher, Grant, Lease
from gpupool import guardian
from gpupool.api import is_generation
from gpupool.errors import EngineDead
from gpupool.http_error import send_error
from gpupool.intake import Connection, Intake
from gpupool.replica import Replica
from gpupool.room import Room
from gpupool.scoreboard import Scoreboard, Slot
from gpupool.settings import Settings

log = logging.getLogger(__name__)

ENGINE_FAILED = 70  # any code but gunicorn's 3 and 4, which stop the whole service
BACKOFF_S = (1, 5, 30, 120)
NUM_CONTROL_THREADS = 4
LEASE_RETRY_S = 1.0
MEMORY_FREE_TIMEOUT_S = 30.0


def log_first_ready(settings: Settings) -> None:
    """Say where the pool is, and a line that works."""
    url = f"http://{settings.host}:{settings.port}"
    key = " -H 'Authorization: Bearer YOUR_KEY'" if settings.api_key else ""
    log.info("Running on %s", url)
    log.info(
        "try: curl -s %s/infer -H 'Content-Type: application/json'%s -d '%s'",
        url,
        key,
        '{"instances": ["The capital of France is"], "params": {"max_tokens": 16}}',
    )


class PoolWorker(ThreadWorker):  # type: ignore[misc]
    """One worker: one slice, one engine. The hooks of gunicorn_conf.py call claim (master) and
    settle (worker); everything after that happens here."""

    settings: Settings
    dispatcher: GPUDispatcher
    row: Slot
    replica: Replica
    slot = 0
    exit_code = 0

    def claim(self, slot: int, scoreboard: Scoreboard) -> None:
        """Take a slot of the scoreboard. Runs in the master, before the fork."""
        self.slot, self.scoreboard, self.row = slot, scoreboard, scoreboard[slot]
        scoreboard.claim(slot)

    def settle(self, settings: Settings, dispatcher: GPUDispatcher) -> None:
        """First steps after the fork, while there is one thread: guardian, then the lease.

        gunicorn answers an exception here by stopping the whole service, so none leaves.
        """
        self.settings, self.dispatcher = settings, dispatcher
        self.row.pid = os.getpid()
        self._lease: Lease | None = None
        try:
            self.guardian = guardian.start()
            self._hold(dispatcher.acquire(self.slot))
        except Exception:
            log.exception("worker %d could not settle", self.slot)
            time.sleep(BACKOFF_S[0])
            os._exit(ENGINE_FAILED)

    def _hold(self, grant: Grant) -> bool:
        """Take a granted lease: the guardian keeps it too, and the process is bound to it."""
        if grant.lease is None:
            return False
        self._lease = grant.lease
        self.guardian.hold(grant.lease.fds)
        grant.lease.bind()
        self.row.describe(gpus=tuple(gpu.uuid for gpu in grant.lease.slice.gpus))
        return True

    # The life of the process.

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
        self.wsgi.extensions["gpupool.scoreboard"] = self.scoreboard
        self.replica = self.wsgi.extensions["gpupool"]
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
        self._stopping = threading.Event()
        self._drain_by = float("inf")
        threading.Thread(target=self._boot, name="boot", daemon=True).start()
        super().run()
        self.replica.close()
        if self.exit_code:
            sys.exit(self.exit_code)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Stop at once; the guardian ends the engine's processes."""
        self.cfg.worker_int(self)
        os._exit(0)

    # The engine, on the boot thread.

    def _boot(self) -> None:
        try:
            lease = self._await_lease()
            if lease is None:
                return
            lease.await_free(MEMORY_FREE_TIMEOUT_S)
            self.replica.load(lease.slice, self.settings)
            self.row.failures = 0
        except BaseException as error:
            log.exception("worker %d could not load its engine", self.slot)
            self._fail(error)

    def _await_lease(self) -> Lease | None:
        """The lease of post_fork, or the next that is granted; None if the worker stops first."""
        while self._lease is None:
            grant = self.dispatcher.acquire(self.slot)
            if self._hold(grant):
                break
            if self.replica.phase != grant.reason:
                log.warning("worker %d waits for its GPUs: %s", self.slot, grant.reason)
                self.replica.enter("waiting", grant.reason)
            if self._stopping.wait(LEASE_RETRY_S):
                return None
        return self._lease

    def _fail(self, error: BaseException) -> None:
        """Publish the failure, wait the slice's back-off, leave; the master forks a successor."""
        self.row.failures += 1
        self.row.describe(last_error=f"{type(error).__name__}: {error}")
        self.replica.fail(error)
        delay_s = BACKOFF_S[min(self.row.failures, len(BACKOFF_S)) - 1]
        log.warning(
            "worker %d failed %d time(s) in a row; next try in %d s",
            self.slot,
            self.row.failures,
            delay_s,
        )
        self._stopping.wait(delay_s)
        self.exit_code = ENGINE_FAILED
        self.handle_exit(None, None)

    # Connections and requests, on the main loop.

    def accept(self, listener: Any) -> None:
        """Take one connection; it costs no thread before its request is whole."""
        try:
            sock, client = listener.accept()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
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
        if request is None or not is_generation(request.path):
            self._submit(self.control_pool, conn)
        elif self.replica.state in ("starting", "waiting", "loading") and self.alive:
            self.room.add(conn)
        else:
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
        if not self.alive and not self._stopping.is_set():
            self._begin_drain()
        self.intake.expire(drain=time.monotonic() >= self._drain_by)
        for conn in self.room.take_expired():
            self._submit(self.tpool, conn)
        self._check_engine()
        if self.row.pid != os.getpid():
            # A reload has given the slot to a successor; what this worker writes is its own now.
            self.row = Slot()
            self.row.pid = os.getpid()

    def _begin_drain(self) -> None:
        self._stopping.set()
        self._drain_by = time.monotonic() + STOP_KEEPALIVE_LINGER
        if self.replica.state == "ready":
            self.replica.enter("draining")
        self._leave_room()

    def _check_engine(self) -> None:
        engine = self.replica.engine
        if self.replica.state != "ready" or engine is None or engine.dead_reason is None:
            return
        log.error("worker %d: the engine died: %s", self.slot, engine.dead_reason)
        self.row.describe(last_error=engine.dead_reason)
        self.replica.fail(EngineDead(engine.dead_reason))
        self.exit_code = ENGINE_FAILED
        self.handle_exit(None, None)

    def _publish(self) -> None:
        """The replica changed: tell the siblings, and let the waiting requests go."""
        replica = self.replica
        if self.row.state != replica.state:
            self.row.enter(replica.state)
            if replica.state == "ready" and self.scoreboard.num_ready() == 1:
                log_first_ready(self.settings)
        self.row.describe(phase=replica.phase)
        self.row.fraction = -1.0 if replica.fraction is None else replica.fraction
        self.row.waiting = len(self.room)
        if replica.state not in ("starting", "waiting", "loading"):
            self._leave_room()

    def _leave_room(self) -> None:
        for conn in self.room.take_all():
            self._submit(self.tpool, conn)
