"""SIGHUP: new settings for a running pool, one worker at a time (master).

Asks, checks, then drives a Roll. Until a worker is ready with the new settings, and again after
one failed with them, every other worker is forked with those before.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from gpupool import logs, preflight
from gpupool.errors import ConfigError
from gpupool.life import End, Life
from gpupool.reload import Edition, Recheck, find_fixed_change
from gpupool.roll import Act, Roll, SlotView
from gpupool.settings import Settings, read_settings

if TYPE_CHECKING:
    from gpupool.master import PoolArbiter

log = logging.getLogger(__name__)

STUCK_S = 60.0  # a worker that waits for GPUs so long is not waited for


class Reloader:
    """Lives as long as the master; at most one reload at a time, and one more asked for."""

    def __init__(self, master: PoolArbiter, edition: Edition) -> None:
        self._master = master
        self.edition = edition  # in force
        self._is_asked = False
        self._recheck: Recheck | None = None
        self._roll: Roll | None = None
        self._next = edition  # the roll's
        self._before = edition
        self._journal = master.scoreboard.reloads
        self._number = 0  # of the reload under way

    @property
    def is_busy(self) -> bool:
        """Whether a reload is under way."""
        return self._is_asked or self._recheck is not None or self._roll is not None

    def ask(self) -> None:
        """Reload as soon as nothing else is reloading; however often it was asked, once."""
        if self._recheck is not None or self._roll is not None:
            log.info("another reload follows the one under way")
        self._is_asked = True
        self._journal.ask()

    def edition_for(self, slot: int) -> Edition:
        """What a worker of this slot is forked with now."""
        is_next = self._roll is not None and self._roll.slot == slot
        return self._next if is_next else self.edition

    def turn(self) -> None:
        """One turn of the master's main loop."""
        if self._roll is not None:
            self._turn_roll(self._roll)
        elif self._recheck is not None:
            if self._recheck.is_overdue:
                self._recheck.kill()
        elif self._is_asked:
            self._is_asked = False
            self._start()

    def stop(self) -> None:
        """The pool ends."""
        self._is_asked = False
        self._roll = None
        if self._recheck is not None:
            self._recheck.kill()

    def gives_up(self, life: Life, end: End) -> bool:
        """Whether a worker's early end stops the reload; the settings before are in force then,
        and its slot gets the next worker with those at once."""
        if self._roll is None or life.edition is not self._next or not self._before.was_ready:
            return False
        log.error(
            "the reload stops: worker %d with the new settings failed: %s; the settings before "
            "are in force again",
            life.slot,
            end.reason,
        )
        with_next = [other for other in self._master.lives.values() if other.edition is self._next]
        for other in with_next:
            if not other.was_ready and not other.is_told:
                self._master.retire(other)  # it would load what just failed
        if num_replaced := sum(other.was_ready for other in with_next):
            log.warning("%d worker(s) run with the new settings all the same", num_replaced)
        self._roll = None
        self._put_in_force(self._before)
        self._journal.end(self._number, f"worker {life.slot} failed with it: {end.reason}")
        return True

    def _start(self) -> None:
        self._number = self._journal.asked
        try:
            settings = preflight.with_engine(read_settings(), self._master.dispatcher)
        except ConfigError as error:
            self._refuse(str(error))
            return
        if (reason := find_fixed_change(self.edition.settings, settings)) is not None:
            self._refuse(reason)
            return
        log.info("reload: checking the new settings")
        try:
            self._recheck = Recheck(settings)
        except OSError as error:
            self._refuse(f"the check of the new settings cannot be started: {error}")
            return
        self._master.children[self._recheck.pid] = self._checked

    def _checked(self, status: int) -> None:
        """The check's process ended."""
        recheck, self._recheck = self._recheck, None
        assert recheck is not None
        reason = recheck.end(status)
        if self._master.is_ending:
            return
        if reason is not None:
            self._refuse(reason)
        else:
            self._read_configuration(recheck.settings)

    def _read_configuration(self, checked: Settings) -> None:
        """Let gunicorn run gunicorn_conf.py again, and put back what it had if that fails."""
        app = self._master.app
        reason = "the YAML file changed while it was checked; try again"
        try:
            app.reload()
            app.cfg.on_reload(self._master)
            if self._master.offered == checked:
                self._begin(Edition(checked, app.cfg, app.app_uri))
                return
        except (Exception, SystemExit) as error:
            # gunicorn leaves the process where a configuration cannot be read.
            reason = f"gunicorn_conf.py failed: {error!r}"
        finally:
            self._master.equip(self.edition)
        self._refuse(reason)

    def _begin(self, edition: Edition) -> None:
        log.info("reload: one worker at a time")
        self._before, self._next, self._roll = self.edition, edition, Roll()
        self._master.backoff.forgive()
        if not self._before.was_ready:
            self._put_in_force(edition)  # nothing is lost by it

    def _turn_roll(self, roll: Roll) -> None:
        if self._next.was_ready and self.edition is not self._next:
            self._put_in_force(self._next)
        views = [self._view(slot) for slot in range(self._master.scoreboard.num_slots)]
        step = roll.next_step(views)
        if step is None:
            if roll.is_done(views):
                self._roll = None
                self._journal.end(self._number, None)
                log.info("reload: done, every worker runs with the new settings")
        elif step.act is Act.FORK:
            self._master.fork(step.slot, self._next)
        else:
            for life in self._master.living_on(step.slot):
                if life.edition is not self._next and not life.is_told:
                    self._master.retire(life)

    def _view(self, slot: int) -> SlotView:
        old = new = None
        is_old_told = is_stuck = False
        living = self._master.living_on(slot)
        for life in living:
            is_silent = life.row.state == "ready" and not life.row.is_ready
            state = "silent" if is_silent else life.row.state
            if life.edition is self._next:
                new = state
            else:
                old, is_old_told = state, life.is_told
            # Beside another it waits for that one.
            is_long = life.row.state == "waiting" and time.monotonic() - life.row.since > STUCK_S
            is_stuck |= len(living) == 1 and (is_long or life.row.state == "quarantined")
        record = self._master.backoff[slot]
        is_held = record.not_before > time.monotonic() or len(living) > 1
        return SlotView(slot, old, is_old_told, new, is_held, is_stuck or record.failures > 0)

    def _put_in_force(self, edition: Edition) -> None:
        master = self._master
        self.edition = edition
        master.settings = edition.settings
        master.equip(edition)
        master.setup(master.app)
        logs.adopt(master.log.error_log)

    def _refuse(self, reason: str) -> None:
        self._journal.end(self._number, reason)
        log.error("the reload is refused, the pool runs on as it is: %s", reason)
