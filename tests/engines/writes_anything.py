"""An engine that, with its process and its libraries, writes whatever it likes wherever it can."""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence

from gpupool.engines.base import Report, SamplingParams, Sink
from tests.engines.scripted import ScriptedEngine

CHILD = """
import ctypes, os, sys
print("the child's stdout")
sys.stderr.write("INFO 11-28 10:00:00 [core.py:58] the child's log\\n")
os.write(2, b'{"no": "log line"}\\n')
sys.stdout.flush()
raise SystemError("the child's end")
"""


class WritesAnything(ScriptedEngine):
    def load(self, report: Report) -> None:
        print("print on stdout")
        sys.stderr.write("python on stderr\n")
        ctypes.CDLL(None).perror(b"C on stderr")
        os.write(2, b"bytes \xff\n50%\r100%\r\n")
        logging.getLogger("some.library").warning("a library warns")
        warnings.warn("this is odd", UserWarning, stacklevel=1)
        subprocess.run([sys.executable, "-c", CHILD], check=False)
        thread = threading.Thread(target=self._fail, name="fails")
        thread.start()
        thread.join()
        super().load(report)

    def _fail(self) -> None:
        raise KeyError("the thread's end")

    def generate(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, sink: Sink
    ) -> None:
        if prompt[0] == ord("!"):
            os.write(2, b"last words")
            os.abort()
        super().generate(request_id, prompt, params, sink)
