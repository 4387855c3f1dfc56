"""Has metrics of its own."""

from __future__ import annotations

from tests.engines.scripted import ScriptedEngine

TEXT = """# HELP own_steps_total Steps.
# TYPE own_steps_total counter
own_steps_total{kind="x"} 3
"""


class TellsMetrics(ScriptedEngine):
    def metrics_text(self) -> str:
        return TEXT
