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
from dataclasses import dataclass, field
from typing import Any, Protocol

from gpupool.clock import RequestClock
from gpupool.errors import Moved
from gpupool.mailbox import Message


@dataclass(slots=True)
class Seen:
    """Of a request whose head was read: what the log says of it, whoever answers."""

    request_id: str = ""
    route: str = "unreadable"
    client: str = ""
    """The address of the other end."""
    key_id: str = ""
    """See KeyRing.id_of."""


@dataclass
class History:
    """What a request has gone through; it travels with the request from worker to worker."""

    since: float = 0.0  # when it was whole (monotonic)
    num_moves: int = 0
    """How many workers have died while they ran it."""
    tries: dict[int, int] = field(default_factory=dict)
    """The same for the items of a batch, which are run one by one."""
    key: int = 0
    """The API key that the request counts for, as KeyRing.word_of has it; 0: for none."""
    is_counted: bool = False
    """Whether the worker that has it counts it in flight."""
    seen: Seen = field(default_factory=Seen)
    """As each worker reads it; it does not travel."""

    def as_fields(self) -> dict[str, Any]:
        """For a message."""
        tries = list(self.tries.items())
        fields = {"since": self.since, "num_moves": self.num_moves, "key": self.key}
        return fields | {"tries": tries}

    @classmethod
    def of_fields(cls, fields: dict[str, Any]) -> History:
        """What `as_fields` made."""
        tries = dict(fields["tries"])
        return cls(fields["since"], fields["num_moves"], tries, fields["key"])


class Counter(Protocol):
    """See slots.Slots."""

    def take(self, count: int = 1) -> None:
        """Count more."""

    def give_back(self, count: int = 1) -> None:
        """Count fewer."""


class Call:
    """Holds one of `slots` until the request ends or steps aside; none without them."""

    def __init__(
        self,
        slots: Counter | None = None,
        copy_request: Callable[[], Message] | None = None,
        history: History | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], object]] = []
        self._slots = slots
        self._num_slots = 1 if slots is not None else 0
        self.copy_request = copy_request
        """The connection and the bytes of the request, for a worker that answers it in place of
        this one if this one is killed; None: there is nothing to copy."""
        self.history = history or History()
        self.since = time.monotonic()
        self.num_tokens = 0
        """Prompt and generated, as far as the answering thread knows; its key's to account for."""
        self.num_prompt_tokens = 0
        """Those of them that are the prompt's."""
        self.clock: RequestClock | None = None
        """A generation's."""
        self.is_gone = False
        self.is_moved = False

    @property
    def holds_slot(self) -> bool:
        """Whether it counts as a running sequence, or as several."""
        return self._num_slots > 0

    def hold_slots(self, count: int) -> None:
        """The request turns out to have so many sequences."""
        with self._lock:
            if self._slots is not None and 0 < self._num_slots < count:
                self._slots.take(count - self._num_slots)
                self._num_slots = count

    def hang_up(self) -> None:
        """Nobody waits for the answer any more."""
        with self._lock:
            self.is_gone = True
            for callback in self._callbacks:
                callback()
            self._callbacks.clear()

    @contextlib.contextmanager
    def watching(self, on_hangup: Callable[[], object]) -> Iterator[None]:
        """Within it, `on_hangup` is called once when the client hangs up, or at once if it has.
        It runs on the thread that noticed, must not block, and is not running any more when the
        block is left."""
        with self._lock:
            is_gone = self.is_gone
            if not is_gone:
                self._callbacks.append(on_hangup)
        if is_gone:
            on_hangup()
        try:
            yield
        finally:
            with self._lock:
                if on_hangup in self._callbacks:
                    self._callbacks.remove(on_hangup)

    def move(self, tries: dict[int, int] | None = None) -> None:
        """Let another worker answer: this one's engine is dead. Raises Moved if that can be.
        `tries` is given for a batch."""
        if self.copy_request is not None:
            if tries is None:
                self.history.num_moves += 1
            else:
                self.history.tries = tries
            self.is_moved = True
            raise Moved("the engine died while it ran this request")

    def step_aside(self) -> None:
        """Give back the slots: the sequences of this request are counted where they run."""
        with self._lock:
            count, self._num_slots = self._num_slots, 0
        if self._slots is not None:
            self._slots.give_back(count)


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
