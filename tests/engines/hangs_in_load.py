"""Loads for ever until the file named by its one argument exists."""

from __future__ import annotations

import threading
from pathlib import Path

from gpupool.engines.base import Report
from gpupool.partition import Slice
from gpupool.settings import Settings
from tests.engines.scripted import ScriptedEngine


class HangsInLoad(ScriptedEngine):
    def __init__(self, settings: Settings, gpu_slice: Slice) -> None:
        super().__init__(settings.model_copy(update={"engine_args": ()}), gpu_slice)
        self._permit = Path(settings.engine_args[0])

    def load(self, report: Report) -> None:
        report("waiting for the other ranks", None)
        if not self._permit.exists():
            threading.Event().wait()
        super().load(report)
