"""The gunicorn worker: its life from the fork to the end (master until the fork, then worker).

Serves as `serving` says, and boots its engine on a thread meanwhile: the heartbeat is the main
loop's, so a load may take as long as it likes.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from functools import partial
from typing import Any

from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER

from dispatcher import GPUDispatcher
from gpupool.boot import Boot
from gpupool.engine_watch import EngineWatch, end_hung_engine
from gpupool.errors import EngineDead
from gpupool.gpus import Gpu
from gpupool.greeting import greet
from gpupool.log_pipes import LogPipes
from gpupool.mailbox import Mailboxes
from gpupool.meter import IdleMeter, Meter
from gpupool.scoreboard import Scoreboard
from gpupool.serving import ServingWorker
from gpupool.settings import Settings
from gpupool.standing import standings

log = logging.getLogger(__name__)

ENGINE_FAILED = 70  # the row's last_error says why
SIGNALS_HELD = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT, signal.SIGABRT, signal.SIGUSR1)
"""Blocked by the master round the fork, until the worker has its own handlers."""
CHECK_PERIOD_S = 0.5


class PoolWorker(ServingWorker):
    """One worker: one slice, one engine. The hooks of gunicorn_conf.py call claim (master) and
    settle (worker); everything after that happens here."""

    boot: Boot
    exit_code = 0

    def claim(
        self,
        index: int,
        scoreboard: Scoreboard,
        mailboxes: Mailboxes,
        log_pipes: LogPipes | None,
    ) -> None:
        """Take a row of the scoreboard, and so its slot. Runs in the master, before the fork."""
        self.row_index, self.scoreboard, self.row = index, scoreboard, scoreboard[index]
        self.mailboxes, self._log_pipes = mailboxes, log_pipes
        self.slot = self.row.slot
        scoreboard.claim(index)

    def settle(self, settings: Settings, dispatcher: GPUDispatcher) -> None:
        """First steps after the fork, while there is one thread.

        gunicorn answers an exception here by stopping the whole service, so none leaves.
        """
        self.settings = settings
        self._dispatcher = dispatcher
        self._idle_meter = IdleMeter(self._idle_gpus)
        try:
            if self._log_pipes is not None:
                self._log_pipes.divert(self.slot)
            mine = self.row_index
            other = next(i for i in self.scoreboard.rows_of(self.slot) if i != mine)
            predecessor = self.scoreboard[other]
            self.boot = Boot(self.slot, self.row, predecessor, settings, dispatcher)
        except Exception as error:
            log.exception("worker %d could not settle", self.slot)
            self.row.describe(last_error=f"{type(error).__name__}: {error}")
            os._exit(ENGINE_FAILED)

    # The life of the process.

    def init_signals(self) -> None:
        """gunicorn's handlers; what came since the fork arrives now. A SIGHUP or SIGUSR2 that was
        meant for the master would end the worker."""
        super().init_signals()
        for number in (signal.SIGHUP, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS_HELD)

    def run(self) -> None:
        """Serve until told to stop; the engine boots meanwhile."""
        self.open_for_requests()
        self._drain_by = float("inf")
        self._next_check = 0.0
        self._is_hung = False
        # gthread ends as soon as no connection is left: this one stands for what a worker has to
        # do before its end, and for what it sent to siblings that may end without reading it.
        self.nr_conns += 1
        self._has_more_to_do = True
        self._watch = EngineWatch(self.settings.stall_timeout_s, lambda: self.row.gpus)
        if self.alive:
            self.boot.start(self.replica, on_failed=self._leave)
        Meter(self.scoreboard.vitals, self.row_index, lambda: self.boot.leased).start()
        if self._dispatcher.gpus:
            self._idle_meter.start()
        super().run()
        if not self.exit_code:
            self.row.enter("draining")  # so the master knows that this end was asked for
        if not self._is_hung:
            self.close_front()
            self.replica.close()
        if self.exit_code:
            # An orderly end of the interpreter takes vLLM 2 to 5 s, in which the slice is not
            # free for the successor, and one with a thread that hangs never comes.
            os._exit(self.exit_code)

    def _idle_gpus(self) -> list[Gpu]:
        """Those of the pool that no worker holds, and those that it was kept from."""
        held = {uuid for row in self.scoreboard for uuid in row.gpus}
        every = (*self._dispatcher.gpus, *self._dispatcher.layout.faulty)
        return [gpu for gpu in every if gpu.uuid not in held]

    def load_wsgi(self) -> None:
        """Import the application, which loads no engine."""
        super().load_wsgi()
        self.app.extensions["gpupool.standings"] = partial(
            standings, self._dispatcher, self._idle_meter.read
        )
        self.replica.on_change = lambda: self.method_queue.defer(self._publish)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Stop at once; the guardian ends the engine's processes."""
        self.row.enter("draining")
        self.cfg.worker_int(self)
        os._exit(0)

    def _leave(self) -> None:
        """Finish what runs and make room for a successor."""
        self.exit_code = ENGINE_FAILED
        self.handle_exit(None, None)

    # What the main loop does each turn.

    def open_mailbox(self, _: Any) -> None:
        """A sibling has sent something; once this worker leaves, it is for the successor."""
        if not self.exit_code:
            super().open_mailbox(_)

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
        for key, _ in self.poller.select(min(timeout, CHECK_PERIOD_S)):
            # One before it may have closed the connection, and its number may be another's now.
            if self.poller.get_map().get(key.fd) is key:
                key.data(key.fileobj)
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
            self.open_orphaned_mailboxes()
            self.limiter.turn()
            self._check_progress()
            if self.alive:
                self.check_engine()
        if not self.alive and self._has_more_to_do and not self._is_needed():
            self._has_more_to_do = False
            self.nr_conns -= 1

    def _is_needed(self) -> bool:
        """Whether others may still depend on this worker, which is told to end."""
        return self.nr_conns > 1 or self.scoreboard.has_on_its_way(self.row_index)

    def _begin_drain(self) -> None:
        """Stop taking new work; what was accepted is still answered, here or elsewhere."""
        self.boot.stop()
        self._drain_by = time.monotonic() + STOP_KEEPALIVE_LINGER
        if self.replica.state != "failed":
            self.replica.enter("draining")
        self._publish()
        if self.exit_code:
            self.admission.has_successor = True
            self.poller.unregister(self.mailboxes.receiver(self.row_index))
        self.leave_to_siblings()

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

    def check_engine(self) -> None:
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
                greet(self.settings)
        self.row.describe(phase=replica.phase)
        self.row.fraction = -1.0 if replica.fraction is None else replica.fraction
        self.row.estimate_s = -1.0 if replica.estimate_s is None else replica.estimate_s
        if replica.engine is not None:
            self.row.slots = min(replica.engine.model.slots, self.settings.threads)
        self.admission.settle()
