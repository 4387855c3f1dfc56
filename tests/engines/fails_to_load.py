"""Fails to load until the file named by its first argument exists; with a second one, only the
worker of that slot does."""

from __future__ import annotations

from pathlib import Path

from gpupool.engines.base import Report
from gpupool.partition import Slice
from gpupool.settings import Settings
from tests.engines.scripted import ScriptedEngine


class FailsToLoad(ScriptedEngine):
    def __init__(self, settings: Settings, gpu_slice: Slice) -> None:
        super().__init__(settings.model_copy(update={"engine_args": ()}), gpu_slice)
        permit, *slots = settings.engine_args
        self._fails = not Path(permit).exists() and slots in ([], [str(gpu_slice.slot)])

    def load(self, report: Report) -> None:
        if self._fails:
            raise RuntimeError("the disk is on fire")
        super().load(report)
