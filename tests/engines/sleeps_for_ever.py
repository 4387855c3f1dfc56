"""Its one thread, in the worker, sleeps for ever at the first step."""

from __future__ import annotations

import threading

from tests.engines.scripted import ScriptedEngine


class SleepsForEver(ScriptedEngine):
    def _compute(self) -> None:
        threading.Event().wait()
