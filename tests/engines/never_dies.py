"""Does not end when it is told to, as a hung driver call does not."""

from __future__ import annotations

import threading

from tests.engines.scripted import ScriptedEngine


class NeverDies(ScriptedEngine):
    def die(self) -> None:
        threading.Event().wait()
