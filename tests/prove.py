"""Break every promise in turn and demand that its test turns red.

`python -m tests.prove [NAME ...]`.

Each patch in tests/mutants/ starts with "# promise:" and "# test:" lines. The test must pass on
a copy of the tree and fail on the copy with the patch applied. Two copies are at work side by side;
tests that measure time come after all others, alone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

import psutil

ROOT = Path(__file__).parent.parent
TESTS_FAILED = 1  # pytest's exit code; any other means that the test did not run
NONE_COLLECTED = 5
NUM_COPIES = 2


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


@dataclass(frozen=True, slots=True)
class Mutant:
    """A patch, and the test that it must turn red."""

    patch: Path
    node: str


def read_mutant(patch: Path) -> Mutant | None:
    text = patch.read_text()
    node = re.search(r"^# test: (\S+)", text, re.MULTILINE)
    return Mutant(patch, node[1]) if node and "# promise:" in text else None


def quiet_tests(files: set[str]) -> set[str]:
    """The ids, without parameters, of the files' tests that measure time."""
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "quiet", *files]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode not in (0, NONE_COLLECTED):
        raise SystemExit(f"the tests cannot be collected:\n{done.stdout[-3000:]}{done.stderr}")
    return {line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line}


def prove(mutants: Sequence[Mutant], tree: Path) -> Iterator[tuple[Mutant, str | None]]:
    """What is wrong with the proof of each mutant of one test, or None."""
    done = run_test(tree, mutants[0].node)
    end_leftovers(tree)
    if done.returncode:
        what = f"the test does not pass without it\n{done.stdout[-3000:]}"
        yield from ((mutant, what) for mutant in mutants)
        return
    for mutant in mutants:
        yield mutant, _prove(mutant, tree)


def _prove(mutant: Mutant, tree: Path) -> str | None:
    applied = ["git", "apply", str(mutant.patch)]
    done = subprocess.run(applied, cwd=tree, check=False, capture_output=True, text=True)
    if done.returncode:
        return f"does not apply: {done.stderr}"
    try:
        done = run_test(tree, mutant.node)
    finally:
        end_leftovers(tree)
        subprocess.run(["git", "apply", "--reverse", str(mutant.patch)], cwd=tree, check=True)
    if done.returncode != TESTS_FAILED:
        return (
            f"the test stays green with it (pytest exit {done.returncode})\n{done.stdout[-2000:]}"
        )
    return None


class Report:
    """Prints each proof when it is there. Any thread."""

    def __init__(self) -> None:
        self.num_passed = self.num_failed = 0
        self._lock = threading.Lock()

    def add(self, name: str, problem: str | None) -> None:
        with self._lock:
            self.num_passed += problem is None
            self.num_failed += problem is not None
            print(f"{'FAIL' if problem else 'red '} {name}", problem or "", flush=True)


def work(jobs: SimpleQueue[list[Mutant]], report: Report) -> None:
    """Prove what is left of the jobs, in a copy of one's own."""
    with tempfile.TemporaryDirectory(prefix="gpupool-prove-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        with suppress(Empty):
            while True:
                for mutant, problem in prove(jobs.get_nowait(), tree):
                    report.add(mutant.patch.stem, problem)


def run(groups: Iterable[list[Mutant]], num_copies: int, report: Report) -> None:
    jobs: SimpleQueue[list[Mutant]] = SimpleQueue()
    for group in groups:
        jobs.put(group)
    with ThreadPoolExecutor(num_copies) as threads:
        for copy in [threads.submit(work, jobs, report) for _ in range(num_copies)]:
            copy.result()


def main(names: list[str]) -> int:
    patches = sorted(Path(__file__).parent.joinpath("mutants").glob("*.patch"))
    if names:
        patches = [patch for patch in patches if any(name in patch.name for name in names)]
    report, by_test = Report(), dict[str, list[Mutant]]()
    for patch in patches:
        mutant = read_mutant(patch)
        if mutant is None:
            report.add(patch.stem, "has no '# promise:' or '# test:' line")
        else:
            by_test.setdefault(mutant.node, []).append(mutant)
    quiet = quiet_tests({node.partition("::")[0] for node in by_test})
    alone = {node for node in by_test if node.partition("[")[0] in quiet}
    run((group for node, group in by_test.items() if node not in alone), NUM_COPIES, report)
    run((by_test[node] for node in sorted(alone)), 1, report)
    print(f"{report.num_passed} passed, {report.num_failed} failed")
    return int(report.num_failed > 0 or not patches)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
