"""Sleeps for ever at the first step, and so does whoever tells it to die after that."""

from __future__ import annotations

import threading

from tests.engines.sleeps_for_ever import SleepsForEver


class IgnoresDie(SleepsForEver):
    def die(self) -> None:
        if self._running:
            threading.Event().wait()
        super().die()
