"""JSON that somebody answered, where anything but an object says nothing (any process; pure)."""

from __future__ import annotations

import json
from typing import Any


def object_or_empty(raw: bytes) -> dict[str, Any]:
    """The object, or an empty one for whatever else the bytes are."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
