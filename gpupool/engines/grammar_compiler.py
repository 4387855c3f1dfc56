"""Grammars compiled in a process that can be ended, and kept (worker process, one thread).

Imports xgrammar only inside functions.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections import OrderedDict
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from gpupool.engines.base import Grammar
from gpupool.errors import BadRequest, EngineError

log = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0
COMPILE_TIMEOUT_S = 10.0
CACHE_BYTES = 256 << 20


class GrammarCompiler:
    """Starts its process with the first grammar, and again after one that had to be stopped."""

    def __init__(self, info: Any, timeout_s: float = COMPILE_TIMEOUT_S) -> None:
        self._info = info
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._kept: OrderedDict[Grammar, tuple[Any, int]] = OrderedDict()

    def compile(self, grammar: Grammar) -> Any:
        """A CompiledGrammar; BadRequest for one that cannot be made, or not in time."""
        kept = self._kept.get(grammar)
        if kept is not None:
            self._kept.move_to_end(grammar)
            return kept[0]
        answer = self._ask(grammar)
        if answer[:1] != b"=":
            reason = " ".join(answer[1:].decode("utf-8", "replace").split())[-200:]
            log.info("a grammar cannot be compiled error=%r", reason)
            raise _refusal(grammar, reason)
        import xgrammar

        compiled = xgrammar.CompiledGrammar.deserialize_json(answer[1:].decode(), self._info)
        self._keep(grammar, compiled, len(answer))
        return compiled

    def close(self) -> None:
        """End the process; idempotent, any thread."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _keep(self, grammar: Grammar, compiled: Any, size: int) -> None:
        self._kept[grammar] = compiled, size
        while len(self._kept) > 1 and sum(size for _, size in self._kept.values()) > CACHE_BYTES:
            self._kept.popitem(last=False)

    def _ask(self, grammar: Grammar) -> bytes:
        if self._process is None or self._process.poll() is not None:
            self._start()
        asked = json.dumps({"kind": grammar.kind, "text": grammar.text}).encode()
        answer = self._exchange(asked, self._timeout_s)
        if answer is None:
            self.close()
            raise _refusal(grammar, f"it takes more than {self._timeout_s:g} s, or too much memory")
        return answer

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gpupool.engines.grammar_child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            )
        self._connection = Connection(ours.detach())
        if self._exchange(self._info.serialize_json().encode(), START_TIMEOUT_S) != b"ready":
            self.close()
            raise EngineError("the process that compiles grammars did not start")

    def _exchange(self, message: bytes, timeout_s: float) -> bytes | None:
        """The answer, or None where the process ends or is silent for so long."""
        assert self._connection is not None
        with suppress(OSError, EOFError):
            self._connection.send_bytes(message)
            if self._connection.poll(timeout_s):
                return self._connection.recv_bytes()
        return None


def _refusal(grammar: Grammar, reason: str) -> BadRequest:
    return BadRequest(f"this {grammar.kind} cannot be compiled: {reason}", code="invalid_grammar")
