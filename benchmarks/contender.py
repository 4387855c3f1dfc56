"""What takes part in a comparison (driver)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.work import TOKENS_EACH


@dataclass(frozen=True, slots=True)
class Answered:
    """One run: how long it took, and the tokens of each answer, None for one that was lost."""

    seconds: float
    tokens: tuple[int | None, ...]
    reason: str = ""  # of the first answer that was lost

    def find_fault(self) -> str | None:
        """Why the run does not count, or None."""
        wrong = [count for count in self.tokens if count != TOKENS_EACH]
        if not wrong:
            return None
        lost = sum(count is None for count in wrong)
        short = len(wrong) - lost
        return f"{lost} of {len(self.tokens)} answers lost, {short} not {TOKENS_EACH} tokens" + (
            f": {self.reason}" if self.reason else ""
        )


class Running(Protocol):
    """A contender that is loaded and idle."""

    def pids(self) -> list[int]:
        """All its processes."""

    def generate(self, prompts: Sequence[str]) -> Answered:
        """Do the work once, all prompts at the same time."""


Start = Callable[[Path, tuple[int, ...]], AbstractContextManager[Running]]
"""Loads a contender, given a folder for its logs and the cores to run on; the end of the
context ends all its processes."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One side of a comparison."""

    name: str
    what: str
    cores: tuple[int, ...]
    num_requests: int
    start: Start


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Run this thread, and what it starts meanwhile, on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
