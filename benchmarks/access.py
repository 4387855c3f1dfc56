"""The access experiment: what the line costs that the log has of each request (driver). Loads
nothing; its section of docs/benchmarks.md is rendered here, too.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.contender import Contender, Outcome, Start
from benchmarks.load import TIMEOUT_S
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


@dataclass(frozen=True, slots=True)
class Asked:
    """One run. All requests are for one token."""

    seconds: float
    num_answered: int
    reason: str = ""

    def count_tokens(self) -> int:
        return self.num_answered

    def facts(self) -> dict[str, Any]:
        return {}

    def find_fault(self) -> str | None:
        lost = NUM_REQUESTS - self.num_answered
        return f"{lost} of {NUM_REQUESTS} answers lost: {self.reason}" if lost else None


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


def start_pool(flags: tuple[str, ...]) -> Start[Site]:
    """The pool, as a user starts it."""

    @contextmanager
    def start(folder: Path, cores: tuple[int, ...]) -> Iterator[Site]:
        with run_pool(folder, cores, 1, *ENGINE, *flags, *ENGINE_ARGS) as pool:
            yield Site(pool.url, pool.pids)

    return start


def ask_all(contender: Contender[Site], index: int) -> Callable[[Site], Outcome]:
    """Clients that ask again as soon as they are answered."""
    return lambda site: asyncio.run(_ask_all(site.url))


async def _ask_all(url: str) -> Asked:
    host, _, port = url.removeprefix("http://").partition(":")
    body = json.dumps({"instances": ["a"], "params": {"max_tokens": 1}})
    head = f"POST /infer HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
    left = iter(range(NUM_REQUESTS))
    began = time.monotonic()
    async with asyncio.timeout(TIMEOUT_S):
        found = await asyncio.gather(
            *(_ask(host, int(port), request, left) for _ in range(NUM_CLIENTS))
        )
    seconds = time.monotonic() - began
    return Asked(seconds, sum(n for n, _ in found), next((why for _, why in found if why), ""))


async def _ask(host: str, port: int, request: bytes, left: Iterator[int]) -> tuple[int, str]:
    """How many answers one client got, and why it got no more. Cheaper than a library's, which
    would take longer to ask than the pool to answer."""
    num_answered, reader, writer = 0, None, None
    for _ in left:
        if reader is None or writer is None:
            reader, writer = await asyncio.open_connection(host, port)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.partition(b": ")[::2] for line in head.lower().split(b"\r\n")[1:])
        answer = await reader.readexactly(int(fields[b"content-length"]))
        if json.loads(answer) != ["a"]:
            return num_answered, answer[:200].decode(errors="replace")
        num_answered += 1
        if fields.get(b"connection") == b"close":  # the pool evens its connections out
            writer.close()
            reader = writer = None
    if writer is not None:
        writer.close()
    return num_answered, ""


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
