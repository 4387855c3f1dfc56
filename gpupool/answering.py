"""The part of the worker that answers: a request that was admitted, by whoever answers its path
(worker process).

Handler threads run the Flask application; the OpenAI API runs on the engine's event loop.
"""

from __future__ import annotations

import socket
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

from gpupool import call, request_id
from gpupool.access import AccessLog
from gpupool.admission import Admission
from gpupool.api.openai.routes import is_ours
from gpupool.boot import freeze_heap
from gpupool.connection import Connection
from gpupool.engines.base import Engine
from gpupool.errors import EngineDead, Moved, RequestError, Unavailable
from gpupool.fanout import Fanout
from gpupool.front import Front
from gpupool.http_error import send_error
from gpupool.key_limiter import KeyLimiter
from gpupool.keys import KeyRing
from gpupool.replica import Replica
from gpupool.settings import Settings
from gpupool.totals import Totals

SEND_TIMEOUT_S = 60.0
CONTROL_SEND_TIMEOUT_S = 2.0  # a few kilobytes; a client that does not take them must not hold one


class AnsweringWorker(ThreadWorker):  # type: ignore[misc]
    """Main thread only, unless it says otherwise."""

    settings: Settings
    replica: Replica
    totals: Totals
    access: AccessLog
    keys: KeyRing
    fanout: Fanout
    admission: Admission
    limiter: KeyLimiter
    alive: bool
    app: Any
    control_pool: ThreadPoolExecutor

    def check_engine(self) -> None:
        """Look whether the engine still lives; called when a request says that it does not."""
        raise NotImplementedError

    def answer(self, conn: Connection) -> None:
        """Let the OpenAI API or a handler thread answer."""
        if is_ours(conn.parser.request.path):
            self._answer_openai(conn)
        else:
            self.answer_by_flask(conn)

    def answer_by_flask(self, conn: Connection) -> None:
        """On a handler thread."""
        conn.sock.patience_s = SEND_TIMEOUT_S
        self._submit(self.tpool, conn)

    def _answer_openai(self, conn: Connection) -> None:
        try:
            self.replica.ready_engine()
            front = self.replica.front
            assert front is not None
            is_last = not self.alive or not self.cfg.keepalive
            done = front.answer(
                self.cfg,
                conn,
                self.log.access,
                close_after=is_last,
                on_answered=lambda: self.limiter.end(conn.call),
            )
        except EngineDead:
            self.check_engine()
            conn.history.num_moves += 1
            self.admission.move(conn)
        except Unavailable as error:
            self.refuse(conn, error)
        else:
            self._finish_when(done, conn)

    def make_front(self, engine: Engine) -> None:
        """The OpenAI API of the engine; on the loading thread, as it imports for a second."""
        self.replica.front = Front(
            engine, self.settings, self.keys, self.totals, self.fanout, self.access
        )
        freeze_heap()

    def close_front(self) -> None:
        """The OpenAI API ends with its engine."""
        if self.replica.front is not None:
            self.replica.front.close()

    def refuse(self, conn: Connection, error: RequestError) -> None:
        """Answer with an error, past those who wait for a handler thread."""
        self.limiter.let_go(conn.history)
        conn.parser.error = error
        self._answer_at_once(conn)

    def _answer_at_once(self, conn: Connection) -> None:
        conn.sock.patience_s = CONTROL_SEND_TIMEOUT_S
        self._submit(self.control_pool, conn)

    def _submit(self, pool: ThreadPoolExecutor, conn: Connection) -> None:
        self._finish_when(pool.submit(self._handle, conn), conn)

    def _finish_when(self, future: Future[Any], conn: Connection) -> None:
        future.add_done_callback(
            lambda done: self.method_queue.defer(self.finish_request, conn, done)
        )

    def _call_app(self, environ: Any, start_response: Any) -> Any:
        answer = self.app(environ, start_response)
        if call.current_call().is_moved:
            raise Moved("another worker answers")  # nothing is sent yet
        self.limiter.end(call.current_call())
        return answer

    def _handle(self, conn: Connection) -> Any:
        with call.answering(conn.call):
            return self.handle(conn)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answer what went wrong outside the application in the one error shape, never HTML."""
        if not isinstance(exc, Moved):
            seen = call.current_call().history.seen
            seen.request_id = seen.request_id or request_id.accept("")
            reason = exc.reason if isinstance(exc, RequestError) else ""
            send_error(client, exc, seen.request_id, partial(self._note_answer, reason))

    def _note_answer(self, reason: str, status: int) -> None:
        """Of a request that never reached the application."""
        asked = call.current_call()
        self.totals.request(asked.history.seen.route, status, reason)
        self.access.write(asked, asked.history.seen.route, status, asked.history.seen.request_id)
