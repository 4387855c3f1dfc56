"""Small facts kept from one run to the next, a file each, in the user's cache folder (any process).

What is kept is only ever a hint: a file that is lost, torn or someone else's is no error.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any


def path_of(kind: str, key: Mapping[str, Any]) -> Path:
    """Where the fact of this kind about this key is kept; RuntimeError where the user has no
    home."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():
        cache = Path.home() / ".cache"
    name = sha256(json.dumps(key).encode()).hexdigest()[:32]
    return cache / "gpupool" / f"{kind}-{name}.json"


def replace(path: Path, text: str) -> None:
    """Put the text in place in one piece: workers that load together write the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, new = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(fd, "w") as file:
            file.write(text)
        os.replace(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
