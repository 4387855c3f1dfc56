"""The worker's hold on the process that runs llama.cpp (worker process)."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpupool.engines.llama_cpp_server import EXIT_NO_MODEL
from gpupool.engines.private_folder import PrivateFolder
from gpupool.gguf_file import GgufModel

log = logging.getLogger(__name__)

KILL_TIMEOUT_S = 3.0
SOCKET = "http.sock"
LOG_LINE = re.compile(r"^\d[\d.]* ([DIWE]) (?:\S+ +\S+: )?(.*)")
LOAD_ERROR = "error loading model: "


class LlamaChild:
    """One process with its private socket, from `start` to `kill`.

    `on_exit` is called once, on a thread of this object's, with the reason.
    """

    def __init__(self, model: GgufModel, on_exit: Callable[[str], None]) -> None:
        self.secret = secrets.token_urlsafe(32)
        self._folder = PrivateFolder("gpupool-llama-", longest_name=len(SOCKET))
        self.socket_path = str(self._folder.path / SOCKET)
        self._model = model
        self._on_exit = on_exit
        self._process: subprocess.Popen[str] | None = None
        self._watch: threading.Thread | None = None
        self._errors: deque[str] = deque(maxlen=20)
        self._last_line = ""
        self._killing = threading.Lock()

    @property
    def pid(self) -> int | None:
        """The process's id once it was started."""
        return self._process.pid if self._process else None

    def start(self, params: Mapping[str, Any], num_gpus: int) -> None:
        """Start the process. The calling thread has to live as long as the worker: the kernel
        ends the process with it."""
        settings = {
            "model": str(self._model.path),
            "socket": self.socket_path,
            "secret": self.secret,
            "num_gpus": num_gpus,
            "params": dict(params),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gpupool.engines.llama_cpp_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=_environment(),
        )
        self._watch = threading.Thread(
            target=self._read_log, args=(self._process,), name="llama-log", daemon=True
        )
        self._watch.start()
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(settings) + "\n")
            stdin.flush()
        except BrokenPipeError:
            log.warning("llama.cpp ended before it was told its model pid=%d", self._process.pid)

    def _read_log(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._take_line(line.rstrip())
        self._on_exit(self._explain(process.wait()))

    def _take_line(self, line: str) -> None:
        self._last_line = line or self._last_line
        found = LOG_LINE.match(line)
        if found is None:
            log.info("llama.cpp: %s", line)
            return
        level, text = found[1], found[2]
        if level == "E":
            self._errors.append(text)
        log.log(logging.WARNING if level in "WE" else logging.DEBUG, "llama.cpp: %s", text)

    def _explain(self, code: int) -> str:
        first = next((text for text in self._errors if LOAD_ERROR in text), "")
        first = first.partition(LOAD_ERROR)[2] or (self._errors[0] if self._errors else "")
        if code == EXIT_NO_MODEL:
            return f"llama.cpp cannot load {str(self._model.path)!r}: {first or self._last_line}"
        if code >= 0:
            return f"llama.cpp ended with exit code {code}: {first or self._last_line}"
        name = signal.Signals(-code).name
        if code == -signal.SIGKILL:
            return f"llama.cpp was ended by {name}; perhaps out of memory: see the kernel's log"
        return f"llama.cpp was ended by {name}: {self._last_line or 'its log says nothing'}"

    def loaded_fraction(self) -> float | None:
        """How much of the model's files the process has read or mapped in, 0..1."""
        if self._process is None:
            return None
        files = {os.path.realpath(file) for file in self._model.files}
        try:
            done = max(_mapped_bytes(self._process.pid, files), _read_bytes(self._process.pid))
        except OSError:
            return None
        return min(1.0, done / max(1, self._model.num_bytes))

    def kill(self) -> None:
        """End the process and remove its socket; idempotent, any thread.

        It keeps nothing that an orderly end would save, and an orderly end may hang or crash.
        """
        with self._killing:
            if self._process is not None:
                self._process.kill()
                try:
                    self._process.wait(KILL_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    log.error("llama.cpp does not end, it waits in the kernel pid=%d", self.pid)
                if self._watch is not None and self._watch is not threading.current_thread():
                    self._watch.join(KILL_TIMEOUT_S)
                if self._process.stdin is not None:
                    self._process.stdin.close()
            self._folder.remove()


def _mapped_bytes(pid: int, files: set[str]) -> int:
    """Resident bytes of some files in a process's memory."""
    total, is_counted = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if not fields[0].endswith(":"):
            is_counted = len(fields) == 6 and fields[5] in files
        elif is_counted and fields[0] == "Rss:":
            total += int(fields[1]) * 1024
    return total


def _read_bytes(pid: int) -> int:
    """What a process has read, when its weights are not mapped."""
    return int(Path(f"/proc/{pid}/io").read_text().split()[1])


def _environment() -> dict[str, str]:
    """The child's variables.

    OpenMP's threads spin at every barrier by default, hundreds of times a token. Where anything
    else runs on one of their cores, each then waits for a thread that is not running: eight
    sequences took 45 s instead of 5 s beside two busy processes on two cores.
    """
    defaults = {"OMP_WAIT_POLICY": "passive"}
    path = os.pathsep.join(filter(None, sys.path))
    return {**defaults, **os.environ, "PYTHONPATH": path}
