"""Computes for --token-s before each step of the batch, on one core, and shows no progress."""

from __future__ import annotations

import hashlib
import time

from tests.engines.scripted import ScriptedEngine

MEGABYTE = bytes(1 << 20)


class LongPrefill(ScriptedEngine):
    def _compute(self) -> None:
        end = time.monotonic() + self.options.token_s
        while time.monotonic() < end:
            hashlib.sha256(MEGABYTE).digest()  # without the interpreter's lock, as kernels are
