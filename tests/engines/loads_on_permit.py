"""Its load begins, and ends when the file named by its one argument exists."""

from __future__ import annotations

import time
from pathlib import Path

from gpupool.engines.base import Report
from gpupool.partition import Slice
from gpupool.settings import Settings
from tests.engines.scripted import ScriptedEngine


class LoadsOnPermit(ScriptedEngine):
    def __init__(self, settings: Settings, gpu_slice: Slice) -> None:
        super().__init__(settings.model_copy(update={"engine_args": ()}), gpu_slice)
        self._permit = Path(settings.engine_args[0])

    def load(self, report: Report) -> None:
        super().load(report)
        while not self._permit.exists():
            time.sleep(0.02)
