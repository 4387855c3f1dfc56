"""How log lines look, and that ours go where gunicorn's go (master; the workers inherit it)."""

from __future__ import annotations

import logging
from typing import Any

from gunicorn.glogging import Logger

from gpupool.json_lines import JsonFormatter
from gpupool.log_pipes import real_stderr

log = logging.getLogger(__name__)


def adopt(parent: logging.Logger) -> None:
    """Give the loggers of this project gunicorn's handlers and level."""
    ours = logging.getLogger("gpupool")
    ours.handlers = parent.handlers
    ours.setLevel(parent.level)
    ours.propagate = False
    if any(isinstance(handler.formatter, JsonFormatter) for handler in parent.handlers):
        # Libraries that log, and Python's own warnings.
        logging.getLogger().handlers = parent.handlers
        logging.captureWarnings(True)


class JsonLogger(Logger):  # type: ignore[misc]
    """gunicorn's logger, which makes the handlers, with JSON lines."""

    def _set_handler(self, log: Any, output: Any, fmt: Any, stream: Any = None) -> None:
        super()._set_handler(log, output, JsonFormatter(), real_stderr())


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
