"""Compiles grammars for one worker, until that closes the connection (a process of its own, in the
worker's process group; it has no GPU). Imports xgrammar only inside functions.

Some grammars of a few kilobytes take hours, or all memory, to compile, and nothing stops xgrammar
amid one but the end of its process.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

THREADS = 2
MAX_MEMORY_BYTES = 4 << 30  # beyond what the libraries take
MAX_BLANKS = 16  # between the parts of a JSON text: a small model may write them without end
ANY_OBJECT = {"type": "object", "additionalProperties": True}


def main() -> None:
    """Answers each grammar, a JSON object, with a compiled one or with what is wrong with it."""
    connection = Connection(int(sys.argv[1]))
    with contextlib.suppress(EOFError):
        compiler = _make_compiler(connection.recv_bytes().decode())
        connection.send_bytes(b"ready")
        while True:
            asked = json.loads(connection.recv_bytes())
            connection.send_bytes(_answer(compiler, asked["kind"], asked["text"]))


def _make_compiler(tokenizer: str) -> Any:
    import xgrammar

    info = xgrammar.TokenizerInfo.deserialize_json(tokenizer)
    _limit_memory()
    # What was compiled is kept where it is used.
    return xgrammar.GrammarCompiler(info, max_threads=THREADS, cache_enabled=False)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MAX_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _answer(compiler: Any, kind: str, text: str) -> bytes:
    try:
        compiled: str = _compile(compiler, kind, text).serialize_json()
    except Exception as error:
        # The library says what it does not like of a grammar by exceptions of any kind.
        return b"!" + str(error).encode("utf-8", "replace")
    return b"=" + compiled.encode()


def _compile(compiler: Any, kind: str, text: str) -> Any:
    if kind == "regex":
        return compiler.compile_regex(text)
    if kind == "ebnf":
        return compiler.compile_grammar(text)
    schema = text if kind == "json_schema" else json.dumps(ANY_OBJECT)
    return compiler.compile_json_schema(schema, max_whitespace_cnt=MAX_BLANKS)


if __name__ == "__main__":
    main()
