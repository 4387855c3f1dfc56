"""One line in the log for each request: by it, and by its id, an answer is found again (worker).

Probes are left out, but for those that are refused: a line each second would hide the others.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from gpupool.api import CONTROL_PATHS
from gpupool.call import Call

log = logging.getLogger(__name__)

MAX_ROUTE_CHARS = 200
CLIENT_LEFT = 499
PROBED = (200, 304, 503)
"""What probes are answered with, day and night."""


class AccessLog:
    """A worker's; any thread. A host without workers has one that is off."""

    def __init__(self, slot: int = 0, *, is_on: bool = False) -> None:
        self._slot = slot
        self._is_on = is_on

    def write(self, call: Call, route: str, status: int, request_id: str = "-") -> None:
        """The request is answered with this status, or left by its client (499). Times count from
        the whole request, in seconds; null where there was no such moment, or another worker
        saw it."""
        if not self._is_on or (route in CONTROL_PATHS and status in PROBED):
            return
        if not log.isEnabledFor(logging.INFO):
            return
        clock = call.clock
        fields = {
            "id": request_id,
            "route": _plain(route),
            "status": status,
            "prompt_tokens": call.num_prompt_tokens,
            "generated_tokens": call.num_tokens - call.num_prompt_tokens,
            "queue_s": _rounded(clock.queue_s if clock else None),
            "first_token_s": _rounded(clock.first_token_s if clock else None),
            "total_s": _rounded(time.monotonic() - (call.history.since or call.since)),
            "worker": self._slot,
            "client": call.history.seen.client or None,
            "key": call.history.seen.key_id or None,
        }
        tail = " ".join(f"{name}={_shown(value)}" for name, value in fields.items())
        log.info("access %s", tail, extra={"event": "access", "fields": fields})


def _plain(route: str) -> str:
    """A path comes from anybody, and a terminal may show the log."""
    route = route[:MAX_ROUTE_CHARS]
    return route if route.isascii() and route.isprintable() and " " not in route else ascii(route)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)
