"""Finds out while it loads that the model is none: trying again would be for nothing."""

from __future__ import annotations

from gpupool.engines.base import Report
from gpupool.errors import ConfigError
from tests.engines.scripted import ScriptedEngine


class RefusesToLoad(ScriptedEngine):
    def load(self, report: Report) -> None:
        raise ConfigError("--model_name 'M' has no weights; give a folder that does")
