"""The examples of docs/planner.md, made by the command; `python -m tests.plan_examples` writes
them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.plan_models import PUBLISHED

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "planner.md"
PLACE = re.compile(r"(<!-- example: (\S+) \| ([^\n]+) -->\n)(?:\n```\n.*?\n```\n)?", re.DOTALL)


def rendered() -> str:
    """The document with its examples made anew."""
    with tempfile.TemporaryDirectory() as home:
        return PLACE.sub(
            lambda m: f"{m[1]}\n{_example(Path(home), m[2], m[3])}", DOCUMENT.read_text()
        )


def _example(home: Path, name: str, gpus: str) -> str:
    model = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = model / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("a" * 40)
    (snapshot / "config.json").write_text(json.dumps(PUBLISHED[name].config))
    done = subprocess.run(
        [sys.executable, "-m", "gpupool.cli", "plan", "--model_name", name, "--gpu", gpus],
        env=os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    command = f'gpupool plan --model_name {name} --gpu "{gpus}"'
    return f"```\n$ {command}\n{done.stdout}```\n"


if __name__ == "__main__":
    DOCUMENT.write_text(rendered())
