"""The id by which a request is found in the logs of client and pool (worker process)."""

from __future__ import annotations

import re
import uuid

HEADER = "X-Request-Id"
FIT = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def accept(given: str) -> str:
    """The client's own if it is fit for a log, else a new one."""
    return given if FIT.fullmatch(given) else uuid.uuid4().hex
