"""PoolArbiter: gunicorn's arbiter with a life for each slice (master process).

Put in the place of gunicorn's own by the on_starting hook, so that a plain
`gunicorn -c gunicorn_conf.py` is a whole pool. Imports no engine and nothing of CUDA.
"""

from __future__ import annotations

from typing import Protocol

from gunicorn.arbiter import Arbiter

from dispatcher import GPUDispatcher
from gpupool.gpu_guard import GpuGuard
from gpupool.notify import TEARDOWN_S, Notifier
from gpupool.scoreboard import Scoreboard
from gpupool.settings import Settings


class Attendant(Protocol):
    """What the master does beside its workers: systemd, the watch over the GPUs."""

    def turn(self) -> None:
        """Once a second or more often, on the master's main loop; must not block or raise."""

    def stop(self) -> None:
        """The pool begins to end; the workers have not been told yet."""


class PoolArbiter(Arbiter):  # type: ignore[misc]
    """The master of one pool."""

    settings: Settings
    dispatcher: GPUDispatcher
    scoreboard: Scoreboard
    notifier: Notifier
    attendants: tuple[Attendant, ...]

    def manage_workers(self) -> None:
        """One turn of the main loop."""
        super().manage_workers()
        for attendant in self.attendants:
            attendant.turn()

    def stop(self, graceful: bool = True) -> None:
        """End the workers; returns when all have ended."""
        for attendant in self.attendants:
            attendant.stop()
        super().stop(graceful)


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
    arbiter.attendants = (arbiter.notifier, guard)
