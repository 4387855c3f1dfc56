"""What the log says when the first worker is ready: where the pool is, and a line that works
(worker process)."""

from __future__ import annotations

import logging
import os
import sys

from gpupool.settings import Settings

log = logging.getLogger(__name__)

EXAMPLE = (
    '{"instances": ["The capital of France is"], "params": {"max_tokens": 16, "temperature": 0}}'
)


def greet(settings: Settings) -> None:
    """Say where the pool is, and a line that works."""
    url = f"http://{settings.host}:{settings.port}"
    if os.environ.get("GPUPOOL_SINGLE"):
        # Scripts wait for these two lines of the single instances that came before this one.
        sys.stdout.write(f"model load finished\nRunning on {url}\n")
        sys.stdout.flush()
    key = (
        " -H 'Authorization: Bearer YOUR_KEY'" if settings.api_key or settings.api_key_file else ""
    )
    log.info("Running on %s", url)
    log.info("look: open %s/ in a browser", url)
    log.info(
        "try: curl -s %s/infer -H 'Content-Type: application/json'%s -d '%s'",
        url,
        key,
        EXAMPLE,
    )
