"""The balance experiment: the pool against stock gthread and nginx over the same application and
engine (driver). Loads nothing.

Two questions. How are requests of very different lengths spread over workers, at three loads and
with 2, 4 and 8 workers? And what does the pool cost per request, with an engine that costs nothing?
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.closed_loop import ask_again
from benchmarks.contender import Contender, Outcome
from benchmarks.ideal import ideal_ttft_ms
from benchmarks.nginx import find_nginx, start_nginx
from benchmarks.open_loop import Arrival, draw_arrivals, offer
from benchmarks.rounds import Work, load, run_round, run_rounds
from benchmarks.site import Site, StepModel, start_pool
from benchmarks.stock import start_stock

NAME = "balance"
NUM_ROUNDS = 3
WORKERS = (2, 4, 8)
LOADS = (0.5, 0.7, 0.9)
RUN_S = 6.0
MODEL = StepModel("benchmarks.step_engine:StepEngine", step_s=0.008, batch_cost=16, slots=8)
WARM_UP_LOAD = 0.3
WARM_UP_S = 2.0

NOOP = StepModel("benchmarks.step_engine:NoopEngine", step_s=0, batch_cost=1, slots=64)
CLIENTS = (1, 16)
CLIENTS_RUN_S = 4.0
CLIENTS_WARM_UP_S = 1.0
GOAL = 0.7
"""Of stock gthread's requests/s with an engine that costs nothing, so with all clients."""

WHATS = {
    "pool": "the pool",
    "stock": "stock gunicorn, gthread workers on one listener",
    "nginx": "nginx `least_conn`, a stock server of one worker each",
}


def run(num_rounds: int, folder: Path, quiet_timeout_s: float) -> dict[str, Any]:
    """The raw numbers of both parts."""
    measured = machine.describe()
    binary = find_nginx()
    if binary is not None:
        measured["versions"]["nginx"] = read_nginx_version(binary)
    scenes = [
        scene
        for num_workers in WORKERS
        for scene in _run_size(num_workers, binary, num_rounds, folder, quiet_timeout_s)
    ]
    return {
        "experiment": NAME,
        "measured": measured,
        "model": asdict(MODEL),
        "run_s": RUN_S,
        "scenes": scenes,
        "overhead": list(_run_overhead(num_rounds, folder, quiet_timeout_s)),
    }


def series_of(result: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """The rounds of each scene; each is repeated until enough of its own count."""
    return [one["rounds"] for one in (*result["scenes"], *result["overhead"])]


def contenders_of(
    num_workers: int, binary: str | None, cores: Sequence[int]
) -> list[Contender[Site]]:
    """Of one size, on all cores."""
    starts = {"pool": start_pool(num_workers, MODEL), "stock": start_stock(num_workers, MODEL)}
    if binary is not None:
        starts["nginx"] = start_nginx(num_workers, MODEL, binary)
    # The number of requests follows from the load.
    return [Contender(name, WHATS[name], tuple(cores), 0, start) for name, start in starts.items()]


def arrivals_of(num_workers: int, share: float, index: int, seconds: float) -> list[Arrival]:
    """A round's clients, at this share of what so many full batches give."""
    return draw_arrivals(index, share * num_workers * MODEL.tokens_per_second, seconds)


def _run_size(
    num_workers: int, binary: str | None, num_rounds: int, folder: Path, quiet_timeout_s: float
) -> Iterator[dict[str, Any]]:
    contenders = contenders_of(num_workers, binary, sorted(os.sched_getaffinity(0)))

    def work(share: float, seconds: float) -> Work[Site]:
        def prepare(contender: Contender[Site], index: int) -> Callable[[Site], Outcome]:
            arrivals = arrivals_of(num_workers, share, index, seconds)
            return lambda site: offer(site, arrivals, num_workers)

        return prepare

    with load(f"{NAME}, {num_workers} workers", contenders, folder) as loaded:
        run_round(contenders, loaded, work(WARM_UP_LOAD, WARM_UP_S), -1, 0)
        for share in LOADS:
            title = f"{NAME}, {num_workers} workers at {share:.0%}"
            rounds = run_rounds(
                title, contenders, loaded, work(share, RUN_S), num_rounds, quiet_timeout_s
            )
            ideals = [
                ideal_ttft_ms(num_workers, MODEL, arrivals_of(num_workers, share, index, RUN_S))
                for index in range(len(rounds))
            ]
            yield {"workers": num_workers, "load": share, "rounds": rounds, "ideal_ttft_ms": ideals}


def _run_overhead(
    num_rounds: int, folder: Path, quiet_timeout_s: float
) -> Iterator[dict[str, Any]]:
    core = (min(os.sched_getaffinity(0)),)
    contenders = [
        Contender("pool", WHATS["pool"], core, 0, start_pool(1, NOOP)),
        Contender("stock", WHATS["stock"], core, 0, start_stock(1, NOOP)),
    ]

    def work(num_clients: int, seconds: float) -> Work[Site]:
        return lambda contender, index: lambda site: ask_again(site, num_clients, seconds)

    with load(f"{NAME}, overhead", contenders, folder) as loaded:
        run_round(contenders, loaded, work(max(CLIENTS), CLIENTS_WARM_UP_S), -1, 0)
        for num_clients in CLIENTS:
            title = f"{NAME}, {num_clients} clients of one worker"
            rounds = run_rounds(
                title, contenders, loaded, work(num_clients, CLIENTS_RUN_S), num_rounds,
                quiet_timeout_s,
            )  # fmt: skip
            yield {"clients": num_clients, "rounds": rounds}


def read_nginx_version(binary: str) -> str:
    """As it says itself."""
    said = subprocess.run([binary, "-v"], capture_output=True, text=True, check=True).stderr
    return said.strip().rpartition("/")[2]
