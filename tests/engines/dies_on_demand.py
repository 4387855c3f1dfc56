"""Dies when it is asked to generate for the prompt "die"."""

from __future__ import annotations

from collections.abc import Sequence

from gpupool.engines.base import SamplingParams, Sink
from tests.engines.scripted import ScriptedEngine


class DiesOnDemand(ScriptedEngine):
    def generate(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, sink: Sink
    ) -> None:
        super().generate(request_id, prompt, params, sink)
        if bytes(prompt) == b"die":
            with self._changed:
                self._dead = "asked to"
                self._changed.notify()
