"""Break every promise in turn and demand that its test turns red.

`python -m tests.prove [NAME ...]`.

Each patch in tests/mutants/ starts with "# promise:" and "# test:" lines. The test must pass on
a copy of the tree and fail on the copy with the patch applied.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
TESTS_FAILED = 1  # pytest's exit code; any other means that the test did not run


def copy_tree(target: Path) -> None:
    """Every file that git tracks or would add, and links to what is built."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    for built in (".venv", ".cache"):
        (ROOT / built).mkdir(exist_ok=True)
        (target / built).symlink_to(ROOT / built)


def run_test(tree: Path, node: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", node]
    env = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, cwd=tree, env=env, check=False, capture_output=True, text=True, timeout=900
    )


def end_leftovers(tree: Path) -> None:
    """A mutant that breaks the cleaning up leaves processes behind; all of them run in the tree."""
    for process in psutil.process_iter():
        try:
            if any(str(tree) in text for text in [process.cwd(), *process.cmdline()]):
                process.kill()
        except psutil.Error:
            continue


def prove(patch: Path, tree: Path, passed: set[str]) -> str | None:
    """What is wrong with a mutant's proof, or None."""
    node = re.search(r"^# test: (\S+)", patch.read_text(), re.MULTILINE)
    if node is None or "# promise:" not in patch.read_text():
        return "has no '# promise:' or '# test:' line"
    if node[1] not in passed:
        done = run_test(tree, node[1])
        if done.returncode:
            return f"the test does not pass without it\n{done.stdout[-3000:]}"
        passed.add(node[1])
    applied = ["git", "apply", str(patch)]
    done = subprocess.run(applied, cwd=tree, check=False, capture_output=True, text=True)
    if done.returncode:
        return f"does not apply: {done.stderr}"
    try:
        done = run_test(tree, node[1])
    finally:
        end_leftovers(tree)
        subprocess.run(["git", "apply", "--reverse", str(patch)], cwd=tree, check=True)
    if done.returncode != TESTS_FAILED:
        return (
            f"the test stays green with it (pytest exit {done.returncode})\n{done.stdout[-2000:]}"
        )
    return None


def main(names: list[str]) -> int:
    patches = sorted(Path(__file__).parent.joinpath("mutants").glob("*.patch"))
    if names:
        patches = [patch for patch in patches if any(name in patch.name for name in names)]
    failed = 0
    with tempfile.TemporaryDirectory(prefix="gpupool-prove-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        passed: set[str] = set()
        for patch in patches:
            problem = prove(patch, tree, passed)
            failed += problem is not None
            print(f"{'FAIL' if problem else 'red '} {patch.stem}", problem or "", flush=True)
    print(f"{len(patches) - failed} passed, {failed} failed")
    return int(failed > 0 or not patches)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
