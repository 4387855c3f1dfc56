"""The streams experiment: the pool against vLLM's own server, both with vLLM's OpenAI application
on the same scripted engine (driver). Loads nothing.

What does the way from the engine to the client cost, with few and with many streams at a time?
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.contender import Contender, Outcome, Start
from benchmarks.paced_client import STEP_S
from benchmarks.pool_load import run_pool
from benchmarks.profiled import profiling, read_parts
from benchmarks.rounds import WARM_UP, Work, load, run_round, run_rounds, say
from benchmarks.server import running
from benchmarks.site import Site
from benchmarks.stream_load import draw_starts, stream
from gpupool.engines.vllm_environment import DEFAULTS, SAFE
from tests.demo_model import model_folder
from tests.pool import free_port

NAME = "streams"
NUM_ROUNDS = 5
STREAMS = (64, 256)
NUM_TOKENS = 100
MODEL = "demo"
ENGINE_FLAGS = ("--max-model-len", "512", "--max-num-seqs", "512")

TTFT_GOAL_MS = 10.0
TOKEN_GOAL_MS = 0.5
CPU_GOAL = 2.0
"""Times uvicorn's CPU per token. All goals are of the fewest streams, and of medians."""

WHATS = {
    "pool": "the pool, one worker",
    "uvicorn": "vLLM's own server, uvicorn, as `vllm serve` runs it",
}


def run(num_rounds: int, folder: Path, quiet_timeout_s: float) -> dict[str, Any]:
    """The raw numbers."""
    measured = machine.describe()
    return {
        "experiment": NAME,
        "measured": measured,
        "step_s": STEP_S,
        "tokens": NUM_TOKENS,
        "scenes": list(_run_scenes(num_rounds, folder, quiet_timeout_s)),
        "profile_us": _profile(folder),
    }


def series_of(result: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """The rounds of each scene; each is repeated until enough of its own count."""
    return [scene["rounds"] for scene in result["scenes"]]


def contenders() -> list[Contender[Site]]:
    """Both on the first core, which leaves another one to the load client."""
    core = (min(os.sched_getaffinity(0)),)
    starts = {"pool": start_pool(), "uvicorn": start_uvicorn()}
    # The number of requests is the scene's.
    return [Contender(name, WHATS[name], core, 0, start) for name, start in starts.items()]


def work_of(num_streams: int) -> Work[Site]:
    """So many at a time."""

    def prepare(contender: Contender[Site], index: int) -> Callable[[Site], Outcome]:
        starts = draw_starts(index, num_streams)
        return lambda site: stream(site, MODEL, starts, NUM_TOKENS)

    return prepare


def _run_scenes(num_rounds: int, folder: Path, quiet_timeout_s: float) -> Iterator[dict[str, Any]]:
    both = contenders()
    with load(NAME, both, folder) as loaded:
        run_round(both, loaded, work_of(max(STREAMS)), WARM_UP, 0)
        for num_streams in STREAMS:
            title = f"{NAME}, {num_streams} at a time"
            work = work_of(num_streams)
            rounds = run_rounds(title, both, loaded, work, num_rounds, quiet_timeout_s)
            yield {"streams": num_streams, "rounds": rounds}


def _profile(folder: Path) -> dict[str, dict[str, float]]:
    """Microseconds per token by part, of one more run of the fewest streams: a profiler makes
    everything slower, so none of the other numbers comes from it."""
    found = {}
    work = work_of(min(STREAMS))
    for contender in contenders():
        say(f"{NAME}: profiling {contender.name}")
        path = folder / f"{contender.name}.pstats"
        with profiling(path), contender.start(folder, contender.cores) as site:
            for index in (WARM_UP, 0):
                outcome = work(contender, index)(site)
        if fault := outcome.find_fault():
            raise RuntimeError(f"profiling {contender.name}: {fault}")
        seconds = read_parts(path)
        tokens = outcome.count_tokens()
        found[contender.name] = {
            part: round(1e6 * own_s / tokens, 1) for part, own_s in seconds.items()
        }
    return found


def start_pool() -> Start[Site]:
    """The pool, as a user starts it."""

    @contextmanager
    def start(folder: Path, cores: tuple[int, ...]) -> Iterator[Site]:
        flags = (
            "--model_name", str(model_folder()), "--served_model_name", MODEL,
            "--infer_type", "benchmarks.paced_engine:PacedEngine", "--", *ENGINE_FLAGS,
        )  # fmt: skip
        with run_pool(folder, cores, 1, *flags) as pool:
            yield Site(pool.url, pool.pids)

    return start


def start_uvicorn() -> Start[Site]:
    """vLLM's own server."""

    @contextmanager
    def start(folder: Path, cores: tuple[int, ...]) -> Iterator[Site]:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        command = [
            sys.executable, "-m", "benchmarks.paced_server", str(model_folder()), MODEL, str(port),
            *ENGINE_FLAGS,
        ]  # fmt: skip
        with running(
            command,
            env={**SAFE, **DEFAULTS, "OMP_NUM_THREADS": str(len(cores))},
            cores=cores,
            ready_url=f"{url}/health",
            log_path=folder / f"uvicorn-{port}.log",
        ) as list_pids:
            yield Site(url, list_pids)

    return start
