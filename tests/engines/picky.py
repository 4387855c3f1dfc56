"""Accepts no engine argument but those of the scripted engine, and says so before any fork."""

from __future__ import annotations

from gpupool.errors import ConfigError
from gpupool.settings import Settings
from tests.engines.scripted import ScriptedEngine


class Picky(ScriptedEngine):
    @staticmethod
    def check(settings: Settings, gpus_per_worker: int) -> None:
        if "--slots" not in settings.engine_args:
            raise ConfigError(f"the engine's arguments are {settings.engine_args}; give --slots")
