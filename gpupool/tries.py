"""How often the items of a batch were given to an engine, and what follows (pure).

What kills engines is in some item. An item that workers died under is run again elsewhere, but not
for ever, and the last time alone.
"""

from __future__ import annotations

from gpupool.batch import Outcome
from gpupool.engines.base import Failed
from gpupool.errors import EngineDead, Unavailable

MAX_TRIES = 3


class Tries:
    """Of one batch; each item by its number."""

    def __init__(self, num_items: int) -> None:
        self._counts = [0] * num_items

    def __getitem__(self, index: int) -> int:
        return self._counts[index]

    def __setitem__(self, index: int, count: int) -> None:
        """Elsewhere, before."""
        self._counts[index] = count

    def start(self, index: int) -> None:
        """Given to an engine once more."""
        self._counts[index] += 1

    def are_over(self, index: int) -> bool:
        """It may not be given to another engine; while it runs: it does so for the last time."""
        return self._counts[index] >= MAX_TRIES

    def is_suspect(self, index: int) -> bool:
        """Two workers died while they ran it. Such items run one at a time, so that the one that
        kills engines, if there is one, does not take the others along a third time."""
        return self._counts[index] >= MAX_TRIES - 1

    def may_run_again(self, index: int, outcome: Outcome) -> bool:
        """Whether the item, which has come back so, is worth another engine."""
        return is_of_dead_worker(outcome) and not self.are_over(index)


def is_of_dead_worker(outcome: Outcome) -> bool:
    """Whether it says nothing of the item, but of who ran it."""
    return isinstance(outcome, Failed) and isinstance(outcome.error, EngineDead | Unavailable)
