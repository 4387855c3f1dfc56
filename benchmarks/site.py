"""A server that offers POST /infer with an engine of `step_engine` (driver)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contender import Start
from benchmarks.pool_load import run_pool

MODEL = "none"


@dataclass(frozen=True, slots=True)
class Site:
    """A server that is ready."""

    url: str
    list_pids: Callable[[], list[int]]

    def pids(self) -> list[int]:
        return self.list_pids()


@dataclass(frozen=True, slots=True)
class StepModel:
    """Which engine of `step_engine`, and its arguments."""

    infer_type: str
    step_s: float
    batch_cost: float
    slots: int

    @property
    def flags(self) -> tuple[str, ...]:
        """As the engine takes them."""
        given = {"step-s": self.step_s, "batch-cost": self.batch_cost, "slots": self.slots}
        return tuple(part for name, value in given.items() for part in (f"--{name}", str(value)))

    @property
    def tokens_per_second(self) -> float:
        """What one full batch gives."""
        return self.slots / (self.step_s * (1 + self.slots / self.batch_cost))


def start_pool(num_workers: int, model: StepModel) -> Start[Site]:
    """The pool, as a user starts it."""

    @contextmanager
    def start(folder: Path, cores: tuple[int, ...]) -> Iterator[Site]:
        flags = ("--model_name", MODEL, "--infer_type", model.infer_type)
        with run_pool(folder, cores, num_workers, *flags, "--", *model.flags) as pool:
            yield Site(pool.url, pool.pids)

    return start
