"""Our log lines go where gunicorn's go, in its format (master; the workers inherit it)."""

from __future__ import annotations

import logging


def adopt(parent: logging.Logger) -> None:
    """Give the loggers of this project gunicorn's handlers and level."""
    ours = logging.getLogger("gpupool")
    ours.handlers = parent.handlers
    ours.setLevel(parent.level)
    ours.propagate = False
