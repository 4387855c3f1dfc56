"""What the log says when the first worker is ready: where the pool is, and a line that works."""

from __future__ import annotations

import logging

from gpupool.settings import Settings

log = logging.getLogger(__name__)

EXAMPLE = (
    '{"instances": ["The capital of France is"], "params": {"max_tokens": 16, "temperature": 0}}'
)


def greet(settings: Settings) -> None:
    """Say where the pool is, and a line that works."""
    url = f"http://{settings.host}:{settings.port}"
    key = (
        " -H 'Authorization: Bearer YOUR_KEY'" if settings.api_key or settings.api_key_file else ""
    )
    log.info("Running on %s", url)
    log.info(
        "try: curl -s %s/infer -H 'Content-Type: application/json'%s -d '%s'",
        url,
        key,
        EXAMPLE,
    )
