"""gunicorn's signals that a pool of GPU slices cannot obey (master process)."""

from __future__ import annotations

import logging

from gunicorn.arbiter import Arbiter

from gpupool import logs

log = logging.getLogger(__name__)


class RefusedSignals(Arbiter):  # type: ignore[misc]
    """Says in the log why nothing happens, and what to do instead."""

    def handle_ttin(self) -> None:
        """The slices are cut once, before the first fork."""
        log.warning(
            "SIGTTIN and SIGTTOU do nothing: there is one worker per slice; restart the pool with "
            "other --workers or --per_proc_gpus"
        )

    handle_ttou = handle_ttin

    def handle_usr1(self) -> None:
        """Only if it can be done."""
        if logs.can_reopen():
            super().handle_usr1()

    def handle_usr2(self) -> None:
        """A second master would fork workers for GPUs that are all leased."""
        log.warning(
            "SIGUSR2 does nothing: a second master would find no free GPU; send SIGHUP to reload "
            "settings and weights, restart the pool to change the program"
        )

    def handle_winch(self) -> None:
        """It would leave a master without workers."""
        log.warning("SIGWINCH does nothing; send SIGTERM to stop the pool")
