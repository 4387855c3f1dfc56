"""Digests of the gunicorn methods that this project overrides or knows the inside of.

`python -m tests.gunicorn_methods` writes them to tests/gunicorn_methods.json, after the new code
was read. test_gunicorn_methods.py compares.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gunicorn import sock, util
from gunicorn.app.base import Application, BaseApplication
from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.arbiter import Arbiter
from gunicorn.http.parser import Parser
from gunicorn.workers.base import Worker
from gunicorn.workers.gthread import PollableMethodQueue, TConn, ThreadWorker
from gunicorn.workers.workertmp import WorkerTmp

from gpupool.answering import AnsweringWorker
from gpupool.connection import Connection
from gpupool.master import PoolArbiter
from gpupool.refused_signals import RefusedSignals
from gpupool.serving import ServingWorker
from gpupool.worker import PoolWorker

TABLE = Path(__file__).with_suffix(".json")

OURS = (PoolArbiter, RefusedSignals, AnsweringWorker, PoolWorker, ServingWorker, Connection)

RELIED_ON: dict[str, tuple[Any, ...]] = {
    "gpupool/master.py": (
        Arbiter.run,
        Arbiter.setup,
        Arbiter.start,
        Arbiter.halt,
        Arbiter.init_signals,
        Arbiter.signal,
        Arbiter.spawn_worker,
        Arbiter.kill_worker,
        Arbiter.kill_workers,
        Arbiter.murder_workers,
        Arbiter.handle_hup,
        Arbiter.handle_chld,
        Arbiter.handle_term,
        Arbiter.handle_int,
        Arbiter.handle_quit,
        Arbiter.handle_usr1,
        WorkerTmp.last_update,
    ),
    "gpupool/reloader.py": (
        BaseApplication.reload,
        BaseApplication.do_load_config,
        BaseApplication.wsgi,
        Application.load_config,
        Application.get_config_from_filename,
        WSGIApplication.init,
        WSGIApplication.load_config,
        WSGIApplication.load,
    ),
    "gpupool/serving.py": (
        Worker.init_process,
        Worker.handle_usr1,
        Worker.handle_abort,
        ThreadWorker.__init__,
        ThreadWorker.run,
        ThreadWorker.handle,
        ThreadWorker.handle_request,
        ThreadWorker.handle_exit,
        ThreadWorker.murder_keepalived,
        PollableMethodQueue.defer,
        PollableMethodQueue.run_callbacks,
    ),
    "gpupool/connection.py": (
        TConn.init,
        Parser.__init__,
        Parser.__next__,
        Parser.finish_body,
    ),
    "gpupool/linger.py": (
        util.close_graceful,
        sock.close_sockets,
    ),
}
"""Who knows their inside, beside those that OURS override."""


def watched() -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Name, function and who must be read again when it changes."""
    for ours in OURS:
        for name, value in vars(ours).items():
            theirs = inherited(ours, name)
            if callable(value) and theirs is not None:
                yield theirs.__qualname__, theirs, f"{ours.__module__}.{ours.__name__}.{name}"
    for reader, functions in RELIED_ON.items():
        for function in functions:
            yield function.__qualname__, function, reader


def inherited(ours: type, name: str) -> Callable[..., Any] | None:
    """gunicorn's function that a method of ours stands in for."""
    if name.startswith("__") and name != "__init__":
        return None
    for base in ours.__mro__[1:]:
        found = vars(base).get(name)
        if base.__module__.startswith("gunicorn") and inspect.isfunction(found):
            return found
    return None


def digest(function: Callable[..., Any]) -> str:
    """Of what the function does: comments, docstrings and layout do not count."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]


def table() -> dict[str, str]:
    """What the installed gunicorn is."""
    return {name: digest(function) for name, function, _ in sorted(watched(), key=lambda w: w[0])}


if __name__ == "__main__":
    TABLE.write_text(json.dumps(table(), indent=2) + "\n")
    sys.exit(0)
