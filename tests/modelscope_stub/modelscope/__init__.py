"""A stand-in for the package modelscope: its hub is the folder MODELSCOPE_STUB_HUB, its cache the
folder MODELSCOPE_CACHE. Has what gpupool/model_source.py asks of it, and writes down each call.

Without MODELSCOPE_STUB_HUB there is no network.
"""

from __future__ import annotations

import json
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path


class NotExistError(Exception):
    """As in modelscope.hub.errors."""


def snapshot_download(
    model_id: str,
    *,
    local_files_only: bool = False,
    allow_patterns: list[str] | None = None,
    ignore_patterns: list[str] | None = None,
) -> str:
    cache = Path(os.environ["MODELSCOPE_CACHE"])
    target = cache / "models" / model_id
    with (cache / "calls").open("a") as calls:
        calls.write(json.dumps([model_id, local_files_only, allow_patterns]) + "\n")
    if local_files_only:
        if not target.is_dir():
            raise ValueError("Cannot find the requested files in the cached path")
        return str(target)
    if "MODELSCOPE_STUB_HUB" not in os.environ:
        raise ConnectionError("no route to ModelScope")
    source = Path(os.environ["MODELSCOPE_STUB_HUB"]) / model_id
    if not source.is_dir():
        raise NotExistError(f"{model_id} does not exist")
    for path in source.rglob("*"):
        name = str(path.relative_to(source))
        allowed = allow_patterns is None or any(fnmatch(name, p) for p in allow_patterns)
        ignored = any(fnmatch(name, p) for p in ignore_patterns or [])
        # What is there stays, as with the real one: somebody may have it mapped.
        if path.is_file() and allowed and not ignored and not (target / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)
    return str(target)
