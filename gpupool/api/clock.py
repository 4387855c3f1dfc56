"""Since when a client waits (worker process)."""

from __future__ import annotations

import time

from flask import g

from gpupool.call import current_call


def whole_at() -> float:
    """When the current request had been read to its end, by the monotonic clock. Under a host
    that does not tell, when it was asked for first."""
    if "whole_at" not in g:
        g.whole_at = current_call().history.since or time.monotonic()
    return float(g.whole_at)
