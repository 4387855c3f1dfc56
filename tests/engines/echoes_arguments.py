"""Logs the engine arguments that it was given."""

from __future__ import annotations

import logging

from gpupool.partition import Slice
from gpupool.settings import Settings
from tests.engines.scripted import ScriptedEngine


class EchoesArguments(ScriptedEngine):
    def __init__(self, settings: Settings, gpu_slice: Slice) -> None:
        logging.getLogger("gpupool").info("arguments: %r", settings.engine_args)
        super().__init__(settings.model_copy(update={"engine_args": ()}), gpu_slice)
