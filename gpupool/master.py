"""PoolArbiter: gunicorn's arbiter with a life for each slice (master process).

Put in the place of gunicorn's own by the on_starting hook, so that a plain
`gunicorn -c gunicorn_conf.py` is a whole pool. Every slot has at most one worker that serves or
loads; a second one is only its successor, which waits for the first to end. Imports no engine
and nothing of CUDA.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable

from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from dispatcher import GPUDispatcher
from gpupool import hooks, logs, procfs
from gpupool.attendant import Attendant
from gpupool.backoff import QUICK_S, Backoff
from gpupool.gpu_guard import GpuGuard
from gpupool.life import End, Life
from gpupool.log_keeper import LogKeeper
from gpupool.log_pipes import LogPipes
from gpupool.notify import TEARDOWN_S, Notifier
from gpupool.refused_signals import RefusedSignals
from gpupool.reload import Edition
from gpupool.reloader import Reloader
from gpupool.scoreboard import Scoreboard
from gpupool.settings import Settings
from gpupool.worker import SIGNALS_HELD, PoolWorker

log = logging.getLogger(__name__)

BUSY_TURN_S = 0.1  # a turn of the main loop while workers are being replaced
MARGIN_S = 2.0  # beyond the grace period, for a worker's own end
FAST_STOP_S = 2.0
GROUPS_TIMEOUT_S = 5.0
EXIT_HOPELESS = 1


class PoolArbiter(RefusedSignals):
    """The master of one pool."""

    settings: Settings
    dispatcher: GPUDispatcher
    scoreboard: Scoreboard
    notifier: Notifier
    attendants: tuple[Attendant, ...]
    log_pipes: LogPipes | None
    backoff: Backoff
    reloader: Reloader
    lives: dict[int, Life]
    children: dict[int, Callable[[int], None]]
    """Other processes that were started here: pid -> what to call with the wait status. The
    reaping of workers takes every child, so whoever starts one is told this way."""
    offered: Settings
    """What gunicorn_conf.py read when it was run last."""
    is_ending: bool
    is_reloading: bool
    _slot: int  # that the worker being forked gets

    # The main loop.

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        """Signals, or none after a while: that of one turn."""
        is_busy = self.reloader.is_busy or any(life.is_told for life in self.lives.values())
        signals: list[int] = super().wait_for_signals(BUSY_TURN_S if is_busy else timeout)
        return signals

    def manage_workers(self) -> None:
        """One turn of the main loop."""
        self._observe()
        self._end_overdue()
        self.reloader.turn()
        self._tell_of_reload()
        self.spawn_workers()
        for attendant in self.attendants:
            attendant.turn()
        if self.backoff.is_hopeless:
            raise HaltServer(hooks.hopeless_reason(self.scoreboard), EXIT_HOPELESS)

    def _tell_of_reload(self) -> None:
        if self.reloader.is_busy == self.is_reloading:
            return
        self.is_reloading = self.reloader.is_busy
        if self.is_reloading:
            self.notifier.reloading()
        else:
            self.notifier.reloaded()

    def _observe(self) -> None:
        """Take over what the workers published."""
        for life in self.lives.values():
            self._note_ready(life)
            if life.row.state == "draining" and not life.is_told:
                self._expect_end(life, self._patience_s)  # an operator's kill
        for slot in range(self.scoreboard.num_slots):
            if not self.living_on(slot):
                hooks.show_back_off(self.scoreboard, slot, self.backoff[slot])

    def _note_ready(self, life: Life) -> None:
        if life.row.ready_since and not life.was_ready:
            life.was_ready = life.edition.was_ready = True
            self.backoff.note_ready(life.slot)
            life.row.failures = 0

    def _end_overdue(self) -> None:
        for life in list(self.lives.values()):
            if time.monotonic() >= life.end_by:
                log.error("worker %d pid=%d did not end in time: killed", life.slot, life.pid)
                life.end_by = time.monotonic() + MARGIN_S
                self.kill_worker(life.pid, signal.SIGKILL)
            elif not life.is_told and (reason := life.overdue(self._patience_s)):
                log.error("worker %d pid=%d is ended: %s", life.slot, life.pid, reason)
                life.verdict = reason
                life.row.describe(last_error=reason)
                self._tell(life, MARGIN_S)

    # Workers come.

    def spawn_workers(self) -> None:
        """Fork a worker for each slot that has none, or only one that leaves, in its time."""
        now = time.monotonic()
        for slot in range(self.scoreboard.num_slots):
            living = self.living_on(slot)
            if len(living) > 1 or not all(life.is_leaving for life in living):
                continue
            if self.backoff[slot].not_before <= now:
                self.fork(slot, self.reloader.edition_for(slot))
        # With no worker at all nobody would answer the probes: one waits inside.
        if not self.lives and (waiting := self.backoff.first_to_answer()) is not None:
            self.fork(waiting, self.reloader.edition_for(waiting))

    def fork(self, slot: int, edition: Edition) -> None:
        """Fork a worker for the slot."""
        self._slot = slot
        self.equip(edition)
        # Between the fork and the worker's own handlers a signal would go to a copy of ours.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS_HELD)
        try:
            pid = self.spawn_worker()
        except OSError as error:
            reason = f"no worker can be forked: {error}"
            self._note_failure(slot, reason)
            hooks.show_error(self.scoreboard, slot, reason)
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self.equip(self.reloader.edition)
        life = self.lives[pid] = Life(self.WORKERS[pid], edition)
        life.row.pid = pid  # the worker writes it too, perhaps later than a successor looks

    def seat(self, worker: PoolWorker) -> None:
        """Give the worker that is about to be forked its row."""
        row = hooks.free_row(self.WORKERS.values(), self.scoreboard, self._slot)
        mailboxes = hooks.shared_mailboxes(self.scoreboard.num_slots)
        worker.claim(row, self.scoreboard, mailboxes, self.log_pipes)
        record = self.backoff[self._slot]
        worker.row.failures = record.failures
        worker.row.not_before = record.not_before

    def equip(self, edition: Edition) -> None:
        """Let gunicorn fork with this configuration."""
        self.app.cfg = self.cfg = edition.cfg
        self.app.app_uri = edition.app_uri
        self.timeout = edition.cfg.timeout
        self.proc_name = edition.cfg.proc_name

    def living_on(self, slot: int) -> list[Life]:
        """The slot's workers: none, one, or one and its successor."""
        return [life for life in self.lives.values() if life.slot == slot]

    # Workers go.

    def retire(self, life: Life) -> None:
        """Let a worker finish what it has and end."""
        log.info("worker %d pid=%d is replaced", life.slot, life.pid)
        self._tell(life, self._patience_s)

    @property
    def _patience_s(self) -> float:
        """How long a worker may take to end."""
        return float(self.cfg.graceful_timeout + MARGIN_S)

    def _tell(self, life: Life, patience_s: float) -> None:
        self.kill_worker(life.pid, signal.SIGTERM)
        self._expect_end(life, patience_s)

    def _expect_end(self, life: Life, patience_s: float) -> None:
        life.is_told = True
        life.end_by = time.monotonic() + patience_s

    def reap_workers(self) -> None:
        """Take every child that ended; unlike gunicorn's own, this never ends the service."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid in self.WORKERS:
                self._note_end(pid, status)
            elif (on_end := self.children.pop(pid, None)) is not None:
                on_end(status)

    def _note_end(self, pid: int, status: int) -> None:
        worker, life = self.WORKERS.pop(pid), self.lives.pop(pid)
        self._note_ready(life)  # it may have been for less than a turn
        end = End.of(life, status)
        worker.tmp.close()
        self.cfg.child_exit(self, worker)
        if self.is_ending:
            return
        if not end.is_failure:
            log.info("worker %d pid=%d ended as it was told", life.slot, pid)
            return
        now = time.monotonic()
        ready_s = now - end.ready_since if end.ready_since else 0.0
        if ready_s < QUICK_S and self.reloader.gives_up(life, end):
            pass
        elif end.ready_since:
            delay_s = self.backoff.note_death(life.slot, now, ready_s)
            log.error(
                "worker %d pid=%d died; next in %d s: %s", life.slot, pid, delay_s, end.reason
            )
        else:
            self._note_failure(life.slot, end.reason, end)
        hooks.show_error(self.scoreboard, life.slot, end.reason)

    def _note_failure(self, slot: int, reason: str, end: End | None = None) -> None:
        delay_s = self.backoff.note_failure(
            slot,
            time.monotonic(),
            is_permanent=end is not None and end.is_permanent,
            may_answer=end is not None and end.was_up,
        )
        log.error(
            "worker %d failed %d time(s) in a row; next try in %d s: %s",
            slot,
            self.backoff[slot].failures,
            delay_s,
            reason,
        )

    # Signals.

    def reload(self) -> None:
        """SIGHUP: new settings, one worker at a time."""
        self._stats["reloads"] += 1
        if logs.can_reopen():
            self.log.reopen_files()
        self.reloader.ask()

    def stop(self, graceful: bool = True) -> None:
        """End the workers; returns when nothing of any of them is left. Called twice by gunicorn
        after SIGINT and SIGQUIT."""
        if not self.is_ending:
            self.is_ending = True
            for attendant in self.attendants:
                attendant.stop()
            self.reloader.stop()
        groups = list(self.WORKERS)
        if not graceful:
            self._stop_fast()
        super().stop(graceful)
        self._await(lambda: not self.WORKERS, FAST_STOP_S)
        for pid in self.WORKERS:  # of the others it was done as they ended
            hooks.kill_group(pid, signal.SIGKILL)
        self._await(lambda: not any(map(procfs.group_members, groups)), GROUPS_TIMEOUT_S)

    def _stop_fast(self) -> None:
        """gunicorn waits the whole grace period for workers that do not hear a SIGQUIT."""
        self.kill_workers(signal.SIGQUIT)
        self._await(lambda: not self.WORKERS, FAST_STOP_S)
        self.kill_workers(signal.SIGKILL)

    def _await(self, condition: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)
            self.reap_workers()


def adopt(
    arbiter: Arbiter, settings: Settings, dispatcher: GPUDispatcher, scoreboard: Scoreboard
) -> None:
    """Turn gunicorn's arbiter, which is about to start, into the pool's."""
    arbiter.__class__ = PoolArbiter
    arbiter.settings = settings
    arbiter.dispatcher = dispatcher
    arbiter.scoreboard = scoreboard
    arbiter.notifier = Notifier.from_environment(settings, scoreboard)
    guard = GpuGuard(
        dispatcher,
        scoreboard,
        arbiter.kill_worker,
        patience_s=settings.graceful_timeout_s + TEARDOWN_S,
    )
    arbiter.children = {}
    arbiter.log_pipes = None
    arbiter.attendants = (arbiter.notifier, guard, LogKeeper.from_environment())
    if settings.log_format == "json":
        arbiter.log_pipes = LogPipes(scoreboard.num_slots, arbiter.children)
        arbiter.attendants += (arbiter.log_pipes,)
    arbiter.backoff = Backoff(scoreboard.num_slots)
    arbiter.reloader = Reloader(arbiter, Edition(settings, arbiter.cfg, arbiter.app.app_uri))
    arbiter.lives = {}
    arbiter.is_ending = arbiter.is_reloading = False
