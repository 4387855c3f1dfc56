"""ModelScope for tests: a hub with models in a folder, and the variables that lead there."""

from __future__ import annotations

import json
from pathlib import Path

STUB = Path(__file__).parent / "modelscope_stub"


class Hub:
    """A hub, and the cache of one user."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder / "hub", folder / "cache"
        self.cache.mkdir()

    def add(self, model_id: str, **files: str | Path) -> None:
        """A model with files: by text, or by a file that is linked; __ in a name is a dot."""
        target = self.folder / model_id
        target.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            path = target / name.replace("__", ".")
            if isinstance(content, Path):
                path.symlink_to(content)
            else:
                path.write_text(content)

    def env(self, *, is_online: bool = True) -> dict[str, str]:
        """Variables for a process, PYTHONPATH among them."""
        hub = {"MODELSCOPE_STUB_HUB": str(self.folder)} if is_online else {}
        return {
            "PYTHONPATH": str(STUB),
            "MODELSCOPE_CACHE": str(self.cache),
            "XDG_CACHE_HOME": str(self.cache),
            **hub,
        }

    def calls(self) -> list[tuple[str, bool, list[str] | None]]:
        """What was asked: model, whether of the cache only, patterns."""
        return [tuple(json.loads(line)) for line in (self.cache / "calls").read_text().splitlines()]
