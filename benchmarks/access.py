"""The access experiment: what the line costs that the log has of each request (driver). Loads
nothing; its section of docs/benchmarks.md is rendered here, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.contender import Contender, Outcome, Start
from benchmarks.one_token import ask_for_tokens
from benchmarks.pool_load import run_pool
from benchmarks.rounds import WARM_UP, counts, load, rates, ratios, run_round, run_rounds
from benchmarks.site import Site
from benchmarks.table import describe_circumstances, render_spread, render_table

NAME = "access"
NUM_ROUNDS = 7
NUM_CLIENTS = 16
NUM_REQUESTS = 4000
FLAGS = {
    "off": ("--access_log", "off"),
    "text": ("--access_log", "on"),
    "json": ("--access_log", "on", "--log_format", "json"),
}
ENGINE = ("--model_name", "none", "--infer_type", "tests.engines.scripted:ScriptedEngine")
ENGINE_ARGS = ("--", "--token-s", "0", "--slots", "64")

TITLE = "The line of each request"
TEXT = f"""\
What `--access_log on` costs, where a request costs nothing else: one worker on one core with a
scripted engine that answers one token at once, {NUM_CLIENTS} clients on another core that ask again
as soon as they are answered, on connections that are kept. The log is a file. A real engine's
tokens take the same core much longer, so this is the most that the line can cost.
"""


def run(num_rounds: int, folder: Path, quiet_timeout_s: float) -> dict[str, Any]:
    """The raw numbers."""
    measured = machine.describe()
    core = (min(os.sched_getaffinity(0)),)
    contenders = [
        Contender(name, " ".join(flags), core, NUM_REQUESTS, start_pool(flags))
        for name, flags in FLAGS.items()
    ]
    with load(NAME, contenders, folder) as loaded:
        run_round(contenders, loaded, ask_all, WARM_UP, 0)
        rounds = run_rounds(NAME, contenders, loaded, ask_all, num_rounds, quiet_timeout_s)
    return {"experiment": NAME, "measured": measured, "requests": NUM_REQUESTS, "rounds": rounds}


def series_of(result: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """The rounds."""
    return [result["rounds"]]


def start_pool(flags: tuple[str, ...]) -> Start[Site]:
    """The pool, as a user starts it."""

    @contextmanager
    def start(folder: Path, cores: tuple[int, ...]) -> Iterator[Site]:
        with run_pool(folder, cores, 1, *ENGINE, *flags, *ENGINE_ARGS) as pool:
            yield Site(pool.url, pool.pids)

    return start


def ask_all(contender: Contender[Site], index: int) -> Callable[[Site], Outcome]:
    """Clients that ask again as soon as they are answered."""
    return lambda site: ask_for_tokens(site.url, NUM_CLIENTS, NUM_REQUESTS)


def render_section(result: Mapping[str, Any]) -> str:
    """The whole section."""
    parts = [f"## {TITLE}\n", TEXT]
    if any(map(counts, result["rounds"])):
        head = ("log", "requests/s", "ratio to `off`, median (lowest to highest)")
        parts.append(render_table(head, (_row(result, name) for name in FLAGS)))
    parts.append(describe_circumstances(result["measured"], result["rounds"]))
    return "\n".join(parts)


def _row(result: Mapping[str, Any], name: str) -> tuple[str, ...]:
    flags = " ".join(FLAGS[name])
    return (
        f"`{flags}`",
        render_spread(rates(result, name), 0),
        render_spread(ratios(result, name, "off"), 2),
    )
