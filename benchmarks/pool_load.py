"""The pool as a contender: bash start_gunicorn.sh, POST /infer (driver)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.contender import Running, Start, on_cores
from benchmarks.load import Endpoint
from benchmarks.server import LOAD_TIMEOUT_S, NO_GPUS
from benchmarks.work import SAMPLING, engine_flags
from tests.demo_model import model_folder
from tests.pool import Pool


def start_pool(num_workers: int) -> Start[Running]:
    """A pool of so many workers, which share the cores out among them."""

    @contextmanager
    def start(folder: Path, cores: tuple[int, ...]) -> Iterator[Endpoint]:
        flags = ("--model_name", str(model_folder()), "--infer_type", "vllm")
        with run_pool(folder, cores, num_workers, *flags, "--", *engine_flags()) as pool:
            yield Endpoint(f"{pool.url}/infer", pool.pids, write_body, count_tokens)

    return start


@contextmanager
def run_pool(folder: Path, cores: tuple[int, ...], num_workers: int, *flags: str) -> Iterator[Pool]:
    """As a user starts it, on these cores; all its workers are ready."""
    pool = Pool(folder, "--workers", str(num_workers), *flags, env=NO_GPUS)
    with ExitStack() as stack:
        with on_cores(cores):
            stack.enter_context(pool)
        yield pool.wait_ready(num_workers, LOAD_TIMEOUT_S)


def write_body(prompt: str) -> dict[str, Any]:
    """With detail, which tells the number of tokens."""
    return {"instances": [prompt], "params": SAMPLING, "detail": True}


def count_tokens(answer: Any) -> int:
    """Of an answer with detail to one prompt."""
    return int(answer[0]["completion_tokens"])
