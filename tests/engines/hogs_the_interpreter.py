"""Holds the interpreter's lock for most of its load, as a careless C extension does, and reports
in between. Its one argument is how many seconds it takes."""

from __future__ import annotations

import ctypes
import time

from gpupool.engines.base import Report
from gpupool.partition import Slice
from gpupool.settings import Settings
from tests.engines.scripted import ScriptedEngine


class HogsTheInterpreter(ScriptedEngine):
    def __init__(self, settings: Settings, gpu_slice: Slice) -> None:
        super().__init__(settings.model_copy(update={"engine_args": ()}), gpu_slice)
        self._seconds = float(settings.engine_args[0])

    def load(self, report: Report) -> None:
        end = time.monotonic() + self._seconds
        while time.monotonic() < end:
            ctypes.PyDLL(None).usleep(1_500_000)
            report("holding the lock", None)
        super().load(report)
