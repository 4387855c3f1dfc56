"""The page at `/`: its files as they are sent (worker process; pure).

Written by hand and sent as they are: nothing is built, nothing comes from another server. They tell
nothing about the pool; what they ask it for needs the key, as for everybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

FOLDER = Path(__file__).parent
PREFIX = "/page/"
INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class File:
    """One of them; the tag changes with the content."""

    content: bytes
    content_type: str
    tag: str


def _read(path: Path) -> File:
    content = path.read_bytes()
    return File(content, TYPES[path.suffix], sha256(content).hexdigest()[:16])


FILES = {path.name: _read(path) for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES}
"""By name. Read once: no path that a client sends ever reaches the file system."""

PATHS = frozenset(PREFIX + name for name in FILES if name != INDEX)
