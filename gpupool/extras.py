"""How to install what is missing (whichever process misses it). Standard library only."""

from __future__ import annotations

import importlib
import shlex
import sys
from pathlib import Path

from gpupool.refusal import EXIT_REFUSED


def require(module: str, program: str) -> None:
    """Leave with one line where this Python cannot import a module for want of a package: for what
    is run as a file, and so perhaps by another Python than the environment's."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"{program}: {sys.executable} has no package {error.name!r}; use the Python of the "
            f"environment that gpupool is in (.venv/bin/python), or {install_line()}\n"
        )
        sys.exit(EXIT_REFUSED)


def install_line(extra: str = "") -> str:
    """A line that brings gpupool, with an extra of pyproject.toml, to the very Python that misses
    it: the `pip` on the PATH is often another one's."""
    folder = Path(__file__).parent.parent
    source = str(folder) if (folder / "pyproject.toml").is_file() else "gpupool"
    wanted = shlex.quote(f"{source}[{extra}]" if extra else source)
    return f"run {shlex.quote(sys.executable)} -m pip install {wanted}"
