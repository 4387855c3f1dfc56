"""Computes each step in a child process, as vLLM and llama.cpp do, and dies with it.

Without its child's answer a step never ends. For the prompt "wait" the child sleeps for ever.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import ClassVar

from gpupool.engines.base import Report
from tests.engines.scripted import ScriptedEngine

CHILD = """
import sys, time
for line in sys.stdin:
    time.sleep(float(line))
    print(flush=True)
"""
FOR_EVER = 3600.0


class InChild(ScriptedEngine):
    computes_in_children: ClassVar[bool] = True

    def load(self, report: Report) -> None:
        pipe = subprocess.PIPE
        self.child = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=pipe, stdout=pipe, text=True
        )
        threading.Thread(target=self._await_end, name="obituary", daemon=True).start()
        super().load(report)

    def _await_end(self) -> None:
        code = self.child.wait()
        with self._changed:
            self._dead = self._dead or f"the child ended with code {code}"
            self._changed.notify()
        self._end_all()

    def _compute(self) -> None:
        is_told_to_wait = any(bytes(s.prompt) == b"wait" for s in self._running.values())
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        try:
            self.child.stdin.write(f"{FOR_EVER if is_told_to_wait else self.options.token_s}\n")
            self.child.stdin.flush()
            self.child.stdout.readline()
        except BrokenPipeError:
            return

    def die(self) -> None:
        """Asks its child to end and waits for that, which never comes while it is stopped."""
        with self._changed:
            self._dead = self._dead or "told to die"
            self._changed.notify()
        self._end_all()
        self.child.terminate()
        self.child.wait()
