"""Has a child process that ignores every request to end, as an engine's worker may."""

from __future__ import annotations

import subprocess
import sys

from gpupool.engines.base import Report
from tests.engines.scripted import ScriptedEngine

STUBBORN = """
import signal, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
print(flush=True)
time.sleep(3600)
"""


class HasChild(ScriptedEngine):
    def load(self, report: Report) -> None:
        self.child = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
        assert self.child.stdout is not None
        self.child.stdout.readline()
        super().load(report)

    def die(self) -> None:
        self.child.kill()
        self.child.wait()
        super().die()
