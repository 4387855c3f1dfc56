"""What becomes a pool's master where start_gunicorn.sh is not on the way: the same gunicorn with
the same configuration (a command, or a single instance, before its exec).

Works from a checkout and from an installed package.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path


def command() -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "gunicorn", "--config", str(_configuration())]


def with_root(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment in which the master finds this very project."""
    kept = dict(environ)
    root = str(_configuration().parent)
    if root not in sysconfig.get_paths().values():
        before = kept.get("PYTHONPATH")
        kept["PYTHONPATH"] = f"{root}:{before}" if before else root
    return kept


def _configuration() -> Path:
    """gunicorn_conf.py, wherever it was installed; found, not imported."""
    spec = importlib.util.find_spec("gunicorn_conf")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)
