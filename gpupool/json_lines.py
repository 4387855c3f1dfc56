"""Log lines as JSON objects (every process that writes some). Standard library only."""

from __future__ import annotations

import json
import logging
import time
from datetime import datetime
from typing import Any, ClassVar


class JsonFormatter(logging.Formatter):
    """One JSON object a line. What a record has in `fields` stands beside its message, which is
    `event` then."""

    worker: ClassVar[int | None] = None
    """The slot of this process's worker, once it is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Called by the handlers."""
        more = dict(getattr(record, "fields", {}))
        if record.exc_info:
            more["exception"] = self.formatException(record.exc_info)
        return render(
            getattr(record, "event", None) or record.getMessage(),
            level=record.levelname.lower(),
            logger=record.name,
            at=record.created,
            **({"pid": record.process, "worker": self.worker} | more),
        )


def render(message: str, *, level: str, logger: str, at: float | None = None, **more: Any) -> str:
    """A line without its end."""
    when = datetime.fromtimestamp(time.time() if at is None else at).astimezone()
    line = {
        "time": when.isoformat(timespec="milliseconds"),
        "level": level,
        "logger": logger,
        "message": message,
        **more,
    }
    return render_fields(line)


def render_fields(line: dict[str, Any]) -> str:
    """The same of a whole object."""
    return json.dumps(line, ensure_ascii=False, default=str)


KEYS = frozenset(("time", "level", "logger", "message"))
"""What every line has."""


def parse(line: str) -> dict[str, Any] | None:
    """The object that a line of ours is, or None."""
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.keys() >= KEYS else None


def take_over(library: str) -> None:
    """Have a library's loggers, which write lines of their own, write to the root's handlers. Does
    nothing where lines are text: the root has no handler then."""
    if logging.getLogger().handlers:
        logger = logging.getLogger(library)
        logger.handlers.clear()
        logger.propagate = True
