"""Computes each step in a child process, as vLLM and llama.cpp do, and dies with it.

Without its child's answer a step never ends. For the prompt "wait" the child sleeps for ever,
for "compile" it starts a process of its own after a second, which computes for 13 s.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import ClassVar

from gpupool.engines.base import Report
from tests.engines.scripted import ScriptedEngine

CHILD = """
import subprocess, sys, time
COMPILER = "import time; end = time.monotonic() + 13\\nwhile time.monotonic() < end: pass"
for line in sys.stdin:
    if line == "compile\\n":
        time.sleep(1)
        subprocess.run([sys.executable, "-c", COMPILER])
    else:
        time.sleep(float(line))
    print(flush=True)
"""
ORDERS = {b"wait": "3600", b"compile": "compile"}


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
        prompts = [bytes(sequence.prompt) for sequence in list(self._running.values())]
        orders = [ORDERS[prompt] for prompt in prompts if prompt in ORDERS]
        order = orders[0] if orders else str(self.options.token_s)
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        try:
            self.child.stdin.write(f"{order}\n")
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
