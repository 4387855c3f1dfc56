"""When the tokens of a request came, for the histograms (worker process, any thread)."""

from __future__ import annotations

import threading
import time

from flask import g, request

from gpupool.totals import Totals


def whole_at() -> float:
    """When the current request had been read to its end, by the monotonic clock. Under a host
    that does not tell, when it was asked for first."""
    if "whole_at" not in g:
        body = request.environ.get("wsgi.input")
        g.whole_at = getattr(body, "whole_at", 0.0) or time.monotonic()
    return float(g.whole_at)


class RequestClock:
    """One generation request, which may have many sequences."""

    def __init__(self, totals: Totals, began: float) -> None:
        self.totals = totals
        self._began = began
        self._is_queued = True
        self._is_silent = True
        self._lock = threading.Lock()

    def start_sequence(self) -> SequenceClock:
        """A sequence goes into the engine; called by the request's own thread."""
        if self._is_queued:
            self._is_queued = False
            self.totals.observe("queue_time_seconds", time.monotonic() - self._began)
        return SequenceClock(self)

    def note_token(self, now: float) -> None:
        """A sequence has its first token; any thread."""
        with self._lock:
            is_first, self._is_silent = self._is_silent, False
        if is_first:
            self.totals.observe("time_to_first_token_seconds", now - self._began)


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
