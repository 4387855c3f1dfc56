"""One request while it is answered: whether somebody still waits, and the slot it holds.

Made by the worker, found by the handler thread that answers (worker process, any thread). A host
without a worker has a call that nobody leaves and that holds no slot.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from gpupool.mailbox import Message


class Call:
    """`release_slot` is called once, when the request ends or steps aside."""

    def __init__(
        self,
        release_slot: Callable[[], None] | None = None,
        copy_request: Callable[[], Message] | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self._release_slot = release_slot
        self.copy_request = copy_request
        """The connection and the bytes of the request, for a worker that answers it in place of
        this one if this one is killed; None: there is nothing to copy."""
        self.since = time.monotonic()
        self.is_gone = False

    @property
    def holds_slot(self) -> bool:
        """Whether it counts as one running sequence."""
        return self._release_slot is not None

    def hang_up(self) -> None:
        """Nobody waits for the answer any more."""
        with self._lock:
            self.is_gone = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    @contextlib.contextmanager
    def watching(self, on_hangup: Callable[[], None]) -> Iterator[None]:
        """Within it, `on_hangup` is called once when the client hangs up, or at once if it has.
        It runs on the thread that noticed, and must not block."""
        with self._lock:
            if not self.is_gone:
                self._callbacks.append(on_hangup)
        if self.is_gone:
            on_hangup()
        try:
            yield
        finally:
            with self._lock:
                if on_hangup in self._callbacks:
                    self._callbacks.remove(on_hangup)

    def step_aside(self) -> None:
        """Give back the slot: the sequences of this request are counted where they run."""
        with self._lock:
            release_slot, self._release_slot = self._release_slot, None
        if release_slot is not None:
            release_slot()


_current: ContextVar[Call | None] = ContextVar("call", default=None)


def current_call() -> Call:
    """The request that this thread answers."""
    return _current.get() or Call()


@contextlib.contextmanager
def answering(call: Call) -> Iterator[None]:
    """What runs within it answers this request."""
    token = _current.set(call)
    try:
        yield
    finally:
        _current.reset(token)
