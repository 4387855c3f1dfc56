"""Our log lines go where gunicorn's go, in its format (master; the workers inherit it)."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


def adopt(parent: logging.Logger) -> None:
    """Give the loggers of this project gunicorn's handlers and level."""
    ours = logging.getLogger("gpupool")
    ours.handlers = parent.handlers
    ours.setLevel(parent.level)
    ours.propagate = False


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
