"""What takes part in a comparison (driver)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from benchmarks.work import TOKENS_EACH


@dataclass(frozen=True, slots=True)
class Answered:
    """One run: how long it took, and the tokens of each answer, None for one that was lost."""

    seconds: float
    tokens: tuple[int | None, ...]
    reason: str = ""  # of the first answer that was lost

    def count_tokens(self) -> int:
        """All that were given."""
        return sum(count or 0 for count in self.tokens)

    def facts(self) -> dict[str, Any]:
        """Nothing else."""
        return {}

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


class Outcome(Protocol):
    """What came of one run of any kind."""

    @property
    def seconds(self) -> float:
        """How long it took."""

    def count_tokens(self) -> int:
        """All that were given."""

    def facts(self) -> dict[str, Any]:
        """What else the raw numbers shall keep."""

    def find_fault(self) -> str | None:
        """Why the run does not count, or None."""


class Loaded(Protocol):
    """A contender that is loaded and idle."""

    def pids(self) -> list[int]:
        """All its processes."""


class Running(Loaded, Protocol):
    """One that is given all its work at once."""

    def generate(self, prompts: Sequence[str]) -> Answered:
        """Do the work once, all prompts at the same time."""


L = TypeVar("L", bound=Loaded)

Start = Callable[[Path, tuple[int, ...]], AbstractContextManager[L]]
"""Loads a contender, given a folder for its logs and the cores to run on; the end of the
context ends all its processes."""


@dataclass(frozen=True, slots=True)
class Contender(Generic[L]):
    """One side of a comparison."""

    name: str
    what: str
    cores: tuple[int, ...]
    num_requests: int
    start: Start[L]


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Run this thread, and what it starts meanwhile, on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
