"""Takes the whole worker with it while it loads, until the file named first exists.

The other arguments say how, one per slot: an exit code, or the name of a signal.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from gpupool.engines.base import Report
from gpupool.partition import Slice
from gpupool.settings import Settings
from tests.engines.scripted import ScriptedEngine


class ExitsDuringLoad(ScriptedEngine):
    def __init__(self, settings: Settings, gpu_slice: Slice) -> None:
        super().__init__(settings.model_copy(update={"engine_args": ()}), gpu_slice)
        self._permit = Path(settings.engine_args[0])
        self._how = settings.engine_args[1 + gpu_slice.slot]

    def load(self, report: Report) -> None:
        report("tempting fate", None)
        if self._permit.exists():
            super().load(report)
        elif self._how.isdigit():
            os._exit(int(self._how))
        else:
            os.kill(os.getpid(), signal.Signals[self._how])
            threading.Event().wait()
