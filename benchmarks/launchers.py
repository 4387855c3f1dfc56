"""The launchers experiment: what Ray Serve costs where gunicorn would do (driver). Loads nothing;
its section of docs/benchmarks.md is rendered here, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.contender import Contender, Outcome, on_cores
from benchmarks.one_token import ask_for_tokens
from benchmarks.pool_load import run_pool
from benchmarks.rounds import (
    WARM_UP,
    Work,
    counts,
    load,
    median,
    rates,
    ratios,
    run_round,
    run_rounds,
)
from benchmarks.server import LOAD_TIMEOUT_S, NO_GPUS
from benchmarks.site import Site
from benchmarks.table import describe_circumstances, render_spread, render_table
from tests.ray_pool.cluster import own_network, ray_pool

NAME = "launchers"
NUM_ROUNDS = 7
SCENES = {1: 300, 16: 2000}
"""Requests in all, by the number of clients that ask at a time."""
ENGINE = ("--model_name", "none", "--infer_type", "tests.engines.scripted:ScriptedEngine")
ENGINE_ARGS = ("--", "--token-s", "0", "--slots", "64")
NUM_REPLICAS = 2

TITLE = "Ray Serve against gunicorn"
TEXT = f"""\
What `--launcher ray` costs on one machine, where a request costs nothing else:
{NUM_REPLICAS} workers, or replicas on a Ray of the pool's own, with a scripted engine that answers
one token at once, and clients that ask again as soon as they are answered, on connections that are
kept. The pools and the clients share both cores. A real engine takes seconds for an answer, in
which Ray's milliseconds do not show.
"""


def run(num_rounds: int, folder: Path, quiet_timeout_s: float) -> dict[str, Any]:
    """The raw numbers. Needs root, for a network of its own: Ray's ports are open to everybody."""
    measured = machine.describe()
    with own_network():
        scenes = list(_run_scenes(num_rounds, folder, quiet_timeout_s))
    return {"experiment": NAME, "measured": measured, "scenes": scenes}


def series_of(result: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """The rounds of each scene; each is repeated until enough of its own count."""
    return [scene["rounds"] for scene in result["scenes"]]


def _run_scenes(num_rounds: int, folder: Path, quiet_timeout_s: float) -> Iterator[dict[str, Any]]:
    cores = tuple(sorted(os.sched_getaffinity(0)))
    both = [
        Contender("gunicorn", "`--launcher gunicorn`", cores, 0, start_gunicorn),
        Contender("ray", "`--launcher ray`", cores, 0, start_ray),
    ]
    with load(NAME, both, folder) as loaded:
        run_round(both, loaded, work_of(max(SCENES)), WARM_UP, 0)
        for num_clients in SCENES:
            title = f"{NAME}, {num_clients} at a time"
            work = work_of(num_clients)
            rounds = run_rounds(title, both, loaded, work, num_rounds, quiet_timeout_s)
            yield {"clients": num_clients, "rounds": rounds}


@contextmanager
def start_gunicorn(folder: Path, cores: tuple[int, ...]) -> Iterator[Site]:
    """The pool, as a user starts it."""
    with run_pool(folder, cores, NUM_REPLICAS, *ENGINE, *ENGINE_ARGS) as pool:
        yield Site(pool.url, pool.pids)


@contextmanager
def start_ray(folder: Path, cores: tuple[int, ...]) -> Iterator[Site]:
    """The same on a Ray of its own."""
    flags = (*ENGINE, "--num_replicas", str(NUM_REPLICAS), *ENGINE_ARGS)
    with ExitStack() as stack:
        with on_cores(cores):
            pool = stack.enter_context(ray_pool(folder, *flags, env=NO_GPUS))
        pool.wait_ready(NUM_REPLICAS, LOAD_TIMEOUT_S)
        yield Site(pool.url, pool.pids)


def work_of(num_clients: int) -> Work[Site]:
    """So many at a time."""

    def prepare(contender: Contender[Site], index: int) -> Callable[[Site], Outcome]:
        return lambda site: ask_for_tokens(site.url, num_clients, SCENES[num_clients])

    return prepare


def render_section(result: Mapping[str, Any]) -> str:
    """The whole section."""
    head = ("clients", "launcher", "requests/s", "ms a request", "ratio to gunicorn, median")
    rows = [
        _row(scene, name)
        for scene in result["scenes"]
        if any(map(counts, scene["rounds"]))
        for name in ("gunicorn", "ray")
    ]
    every_round = [one for scene in result["scenes"] for one in scene["rounds"]]
    circumstances = describe_circumstances(result["measured"], every_round)
    return "\n".join((f"## {TITLE}\n", TEXT, render_table(head, rows), circumstances))


def _row(scene: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = rates(scene, name)
    return (
        str(scene["clients"]),
        f"`{name}`",
        render_spread(found, 0),
        f"{1000 * scene['clients'] / median(found):.1f}",
        render_spread(ratios(scene, name, "gunicorn"), 2),
    )
