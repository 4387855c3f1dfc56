"""Holds the API keys of a pool to their limits (worker process).

Main thread, unless a method says otherwise. One per worker; the numbers are shared. A request
counts from when it is whole to its end, at the worker that has it or on its way to one; what runs
in other workers' lanes belongs to it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from gpupool.call import Call, History
from gpupool.errors import KeyLimited
from gpupool.key_budget import RETRY_AFTER_S, KeyLimits, too_many, used_up
from gpupool.key_use import Sent
from gpupool.keys import KeyRing
from gpupool.scoreboard import Scoreboard
from gpupool.settings import Settings

Headers = Iterable[tuple[str, str]]
"""As gunicorn parsed them."""


class KeyLimiter:
    """One worker's part. `keys` tell which key a request came with."""

    def __init__(
        self, settings: Settings, keys: KeyRing, scoreboard: Scoreboard, index: int
    ) -> None:
        self._limits = KeyLimits(settings.key_concurrency, settings.key_tokens_per_minute)
        self._keys = keys
        self._scoreboard = scoreboard
        self._use = scoreboard.key_use
        self._index = index
        self._lock = threading.Lock()

    def begin(self, history: History, headers: Headers) -> KeyLimited | None:
        """Count a request that is whole and has a valid key, or say why it is one too many. One
        that another worker has let in is in already."""
        if not self._limits or history.key:
            return None
        key, now = self._keys.word_of(headers), time.monotonic()
        refused = too_many(self._limits, self._in_flight(key, now))
        if refused is None and self._limits.tokens_per_minute:
            refused = used_up(self._limits, self._use.minute(key), now)
        if refused is None:
            refused = self._count(history, key, now)
        return refused

    def _count(self, history: History, key: int, now: float) -> KeyLimited | None:
        """Looks again after it has counted: of two workers that let in the last one at the same
        moment at least one sees the other, so there are never too many. Both may step back."""
        with self._lock:
            history.is_counted = self._use.begin(self._index, key, now)
        if not history.is_counted:
            return KeyLimited(
                "more API keys are in use at once than this pool counts; try again later",
                retry_after_s=RETRY_AFTER_S,
            )
        history.key = key
        refused = too_many(self._limits, self._in_flight(key, now) - 1)
        if refused is None:
            return None
        self.let_go(history)
        return refused

    def end(self, call: Call) -> None:
        """A request is over, or its answer is about to be: before its last bytes are sent, so that
        whoever has read them finds the place free. Any thread, any number of times."""
        with self._lock:
            key = call.history.key
            if key and call.num_tokens:
                self._use.spend(self._index, key, call.num_tokens, time.monotonic())
        self.let_go(call.history)

    def let_go(self, history: History) -> None:
        """A request is over, without tokens that are known. Any thread, any number of times."""
        with self._lock:
            key, history.key = history.key, 0
            if history.is_counted:
                history.is_counted = False
                self._use.end(self._index, key)

    # Between workers. What travels is counted: it was not answered yet.

    def send(self, history: History, to: int) -> Sent:
        """A request leaves for another row, which is to be told."""
        sent = Sent(self._index, to, time.monotonic())
        if history.key:
            with self._lock:
                self._use.send(self._index, history.key, to, sent.at)
        return sent

    def take_back(self, history: History) -> None:
        """It could not leave."""
        if history.key:
            with self._lock:
                self._use.take_back(self._index, history.key, time.monotonic())

    def note_sent(self, history: History) -> None:
        """It has left: the rest is another worker's to count."""
        history.key, history.is_counted = 0, False

    def take_over(self, history: History, sent: Sent | None) -> None:
        """A request that another worker had let in is here; None: that worker was killed."""
        if not history.key:
            return
        now = time.monotonic()
        with self._lock:
            if sent is not None:
                history.is_counted = self._use.take_over(self._index, history.key, sent, now)
            else:
                history.is_counted = self._use.begin(self._index, history.key, now)

    def turn(self) -> None:
        """Now and then."""
        with self._lock:
            self._use.forget_arrived(self._index, time.monotonic())

    def _in_flight(self, key: int, now: float) -> int:
        rows = enumerate(self._scoreboard)
        living = [index for index, row in rows if row.pid or index == self._index]
        return self._use.in_flight(key, living, now)
