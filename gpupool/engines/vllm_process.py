"""The processes of one vLLM engine: who they are, how they ended, their end (worker process).

Imports nothing of vLLM.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from multiprocessing.process import BaseProcess

import psutil

POLL_S = 0.02


class Family:
    """EngineCore, which vLLM starts with multiprocessing, and the workers it starts in turn.

    Lifetime: made just before vLLM starts its processes, for one engine. Any thread.
    """

    def __init__(self) -> None:
        self._strangers = {child.pid for child in multiprocessing.active_children()}
        self._children: dict[int | None, BaseProcess] = {}
        self._members: set[psutil.Process] = set()

    def remember(self) -> None:
        """Learn who is there now: the children of one that dies are nobody's any more."""
        for child in multiprocessing.active_children():
            if child.pid not in self._strangers:
                self._children[child.pid] = child
        for pid in list(self._children):
            try:
                parent = psutil.Process(pid)
                self._members.update((parent, *parent.children(recursive=True)))
            except psutil.NoSuchProcess:
                continue

    def alive(self) -> list[psutil.Process]:
        """Who runs; zombies do not."""
        self.remember()
        return [member for member in self._members if _runs(member)]

    def kill(self, timeout_s: float) -> bool:
        """SIGKILL all and wait until they are gone; whether they are."""
        deadline = time.monotonic() + timeout_s
        while alive := self.alive():
            for member in alive:
                try:
                    member.kill()
                except psutil.NoSuchProcess:
                    continue
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)
        return True

    def obituary(self) -> str:
        """How the engine died, as far as exit codes tell."""
        self.remember()
        for child in self._children.values():
            code = child.exitcode
            if code is not None and code < 0:
                name = signal.Signals(-code).name
                hint = "; perhaps the machine ran out of memory" if name == "SIGKILL" else ""
                return f"vLLM's {child.name} was ended by {name}{hint}"
            if code:
                return f"vLLM's {child.name} exited with code {code}; its last log lines say why"
        return "vLLM's engine reported a fatal error; its last log lines say why"


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
