"""Waiting for what the door let in, before Serve's application is deleted (launcher).

A request that waits in Serve's queue while its application is deleted is never answered, by Serve's
design. So the door is shut first.
"""

from __future__ import annotations

import logging
import time

import httpx

from gpupool.pools.record import url_of
from gpupool.ray_pool.door import DRAIN_PATH, SECRET_HEADER
from gpupool.settings import Settings

log = logging.getLogger(__name__)

ASK_EVERY_S = 0.1
TIMEOUT_S = 5.0


def drain(settings: Settings, secret: str) -> None:
    """Let nobody in any more, and return when those inside are answered, or their time is over."""
    deadline = time.monotonic() + settings.graceful_timeout_s
    headers = {SECRET_HEADER.decode(): secret}
    with httpx.Client(headers=headers, trust_env=False, verify=False, timeout=TIMEOUT_S) as client:
        while time.monotonic() < deadline:
            try:
                answer = client.get(url_of(settings) + DRAIN_PATH)
                num_inside = int(answer.json()["inside"])
            except (httpx.HTTPError, ValueError, KeyError) as error:
                log.warning("the door does not answer: %s", type(error).__name__)
                return
            if not num_inside:
                return
            time.sleep(ASK_EVERY_S)
    log.warning("requests are cut off, as --graceful_timeout_s is over")
