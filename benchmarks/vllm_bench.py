"""vLLM's own load generator, `vllm bench serve`, in the place of our load client (driver, and a
process of its own for each run)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contender import Answered, Running, on_cores
from benchmarks.load import Endpoint
from benchmarks.pool_load import run_pool
from benchmarks.vllm_serve import MODEL, count_tokens, write_body
from benchmarks.work import TOKENS_EACH, engine_flags
from tests.demo_model import model_folder
from tests.pool import Pool

ROUTE = "/v1/completions"
TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class BenchServe:
    """A pool, and `vllm bench serve` to ask it."""

    url: str
    list_pids: Callable[[], list[int]]
    folder: Path
    own_cores: tuple[int, ...]

    def pids(self) -> list[int]:
        return self.list_pids()

    def generate(self, prompts: Sequence[str]) -> Answered:
        """By its own clock, from the first request sent to the last answer read."""
        with on_cores(self.own_cores):
            result = bench_serve(self.url, MODEL, prompts, self.folder)
        lengths = [length or None for length in result["output_lens"]]
        reason = next((error for error in result["errors"] if error), "")
        return Answered(result["duration"], tuple(lengths), reason[-300:])


def bench_serve(url: str, model: str, prompts: Sequence[str], folder: Path) -> dict[str, Any]:
    """Ask for all prompts at once, as streams of TOKENS_EACH tokens; what it says of it."""
    asked, told = folder / "prompts.json", folder / "told.json"
    asked.write_text(json.dumps([_as_conversation(prompt) for prompt in prompts]))
    told.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "benchmarks.vllm_command", "bench", "serve",
        "--backend", "openai", "--base-url", url, "--endpoint", ROUTE,
        "--model", model, "--tokenizer", str(model_folder()),
        "--dataset-name", "sharegpt", "--dataset-path", str(asked),
        "--sharegpt-output-len", str(TOKENS_EACH), "--num-prompts", str(len(prompts)),
        "--disable-shuffle", "--ignore-eos", "--temperature", "0", "--ready-check-timeout-sec", "0",
        "--disable-tqdm", "--save-result", "--save-detailed",
        "--result-dir", str(folder), "--result-filename", told.name,
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        raise RuntimeError(f"vllm bench serve ended with {done.returncode}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(told.read_text())
    return result


def _as_conversation(prompt: str) -> dict[str, Any]:
    """The only format of prompts of one's own that vLLM reads without pandas; of the answer it
    wants no more than that there is one."""
    return {"conversations": [{"value": prompt}, {"value": "-"}]}


@contextmanager
def start_bench_serve(folder: Path, cores: tuple[int, ...]) -> Iterator[Running]:
    """A pool of one worker, asked by vLLM's load generator from the other cores."""
    others = tuple(sorted(os.sched_getaffinity(0) - set(cores)))
    with _run(folder, cores) as pool:
        yield BenchServe(pool.url, pool.pids, folder, others)


@contextmanager
def start_own_client(folder: Path, cores: tuple[int, ...]) -> Iterator[Running]:
    """The same pool, asked by our load client."""
    with _run(folder, cores) as pool:
        yield Endpoint(f"{pool.url}{ROUTE}", pool.pids, write_body, count_tokens)


def _run(folder: Path, cores: tuple[int, ...]) -> AbstractContextManager[Pool]:
    flags = (
        "--model_name", str(model_folder()), "--served_model_name", MODEL, "--infer_type", "vllm",
    )  # fmt: skip
    return run_pool(folder, cores, 1, *flags, "--", *engine_flags())
