"""When the tokens of a request came, for the histograms (worker process, any thread)."""

from __future__ import annotations

import threading
import time

from gpupool.totals import Totals


class RequestClock:
    """One generation request, which may have many sequences; or a worker's share of a batch, of
    which the coordinator says when it began if this share has its first sequence."""

    def __init__(
        self, totals: Totals, began: float, *, is_share: bool = False, is_first: bool = True
    ) -> None:
        self.totals = totals
        self.began = began
        self.queue_s: float | None = None
        self.first_token_s: float | None = None
        self._is_queued = not is_share
        self._is_silent = is_first
        self._lock = threading.Lock()

    def start_sequence(self) -> SequenceClock:
        """A sequence goes into the engine; called by the request's own thread."""
        if self._is_queued:
            self._is_queued = False
            self.queue_s = time.monotonic() - self.began
            self.totals.observe("queue_time_seconds", self.queue_s)
        return SequenceClock(self)

    def note_token(self, now: float) -> None:
        """A sequence has its first token; any thread."""
        with self._lock:
            is_first, self._is_silent = self._is_silent, False
        if is_first:
            self.first_token_s = now - self.began
            self.totals.observe("time_to_first_token_seconds", self.first_token_s)


class SequenceClock:
    """One sequence of a request. `tick` is called by one thread at a time."""

    def __init__(self, request: RequestClock) -> None:
        self._request = request
        self._last: float | None = None

    def tick(self, num_tokens: int) -> None:
        """So many new tokens are there."""
        if not num_tokens:
            return
        now = time.monotonic()
        if self._last is None:
            self._request.note_token(now)
        else:
            # Tokens that come together share the wait for them.
            wait_s = (now - self._last) / num_tokens
            self._request.totals.observe("inter_token_latency_seconds", wait_s, num_tokens)
        self._last = now
