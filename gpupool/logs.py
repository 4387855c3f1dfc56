"""How log lines look, and that ours go where gunicorn's go (master; the workers inherit it)."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from typing import Any

from gunicorn.glogging import Logger

log = logging.getLogger(__name__)


def adopt(parent: logging.Logger) -> None:
    """Give the loggers of this project gunicorn's handlers and level."""
    ours = logging.getLogger("gpupool")
    ours.handlers = parent.handlers
    ours.setLevel(parent.level)
    ours.propagate = False


class JsonFormatter(logging.Formatter):
    """One JSON object a line. What a record has in `fields` stands beside its message, which is
    `event` then."""

    def format(self, record: logging.LogRecord) -> str:
        """Called by the handlers."""
        when = datetime.fromtimestamp(record.created).astimezone()
        line: dict[str, Any] = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": getattr(record, "event", None) or record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class JsonLogger(Logger):  # type: ignore[misc]
    """gunicorn's logger, which makes the handlers, with JSON lines."""

    def _set_handler(self, log: Any, output: Any, fmt: Any, stream: Any = None) -> None:
        super()._set_handler(log, output, JsonFormatter(), stream)


LOGGERS = {"text": Logger, "json": JsonLogger}
"""By --log_format."""


def can_reopen() -> bool:
    """Whether gunicorn's log files can be opened anew. It closes them first, and where one
    has no folder any more, or may not be written, the master and all workers would end of it."""
    for name in ("gunicorn.error", "gunicorn.access"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.FileHandler):
                try:
                    open(handler.baseFilename, "ab").close()
                except OSError as error:
                    log.error("the log files stay open as they are: %s", error)
                    return False
    return True
