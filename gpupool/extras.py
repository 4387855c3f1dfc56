"""How to install what an engine needs (preflight process)."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def install_line(extra: str) -> str:
    """A line that brings an extra of pyproject.toml to the very Python that misses it: the `pip`
    on the PATH is often another one's."""
    folder = Path(__file__).parent.parent
    source = str(folder) if (folder / "pyproject.toml").is_file() else "gpupool"
    wanted = shlex.quote(f"{source}[{extra}]")
    return f"run {shlex.quote(sys.executable)} -m pip install {wanted}"
