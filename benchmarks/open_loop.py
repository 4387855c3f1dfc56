"""Clients that come when they come, whatever the server does: an open loop (driver).

Arrivals are a Poisson process and lengths lognormal, both drawn from a fixed seed, so that all
contenders of a round get the same. Connections are kept alive and used again, as clients of an
API do; one more is opened when all are in use.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from benchmarks.load import TIMEOUT_S, first_served
from benchmarks.site import Site
from benchmarks.step_engine import Record, read_record, write_prompt

SEED = 20261121
SIGMA = 1.1  # of the lognormal lengths: a tenth of the requests has two fifths of the tokens
MEDIAN_TOKENS = 18
MAX_TOKENS = 320
SETTLE_S = 1.0
"""Who comes while a run fills up finds idle workers, and is left out of the percentiles."""
PERCENTILES = (50, 90, 99, 100)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A client that comes `at_s` seconds after the start and asks for so many tokens."""

    at_s: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """When it was there, by the clock of the records, and what it tells."""

    done_at: float
    record: Record


def draw_arrivals(index: int, tokens_per_second: float, seconds: float) -> list[Arrival]:
    """Those of a round. They ask for exactly this many tokens per second: chance decides who
    comes when and for how much, not how much all together want."""
    chance = random.Random(f"{SEED} {index}")
    count = round(tokens_per_second * seconds / _mean_tokens())
    lengths = [_draw_length(chance) for _ in range(count)]
    gaps = [chance.expovariate(1.0) for _ in range(count)]
    scale = sum(lengths) / tokens_per_second / sum(gaps)
    arrivals, at_s = [], 0.0
    for length, gap in zip(lengths, gaps, strict=True):
        at_s += gap * scale
        arrivals.append(Arrival(at_s, length))
    return arrivals


def _draw_length(chance: random.Random) -> int:
    return min(MAX_TOKENS, math.ceil(chance.lognormvariate(math.log(MEDIAN_TOKENS), SIGMA)))


def _mean_tokens() -> float:
    chance = random.Random(SEED)
    return sum(_draw_length(chance) for _ in range(10_000)) / 10_000


@dataclass(frozen=True, slots=True)
class Offered:
    """One run in an open loop."""

    began: float
    seconds: float
    arrivals: Sequence[Arrival]
    answers: Sequence[Answer | None]
    num_workers: int
    reason: str = ""  # of the first answer that was lost

    def count_tokens(self) -> int:
        """All that were given."""
        return sum(answer.record.num_tokens for answer in self.answers if answer)

    def find_fault(self) -> str | None:
        """Why the run does not count, or None."""
        pairs = list(zip(self.arrivals, self.answers, strict=True))
        lost = sum(answer is None for _, answer in pairs)
        wrong = sum(a is not None and a.record.num_tokens != wish.num_tokens for wish, a in pairs)
        if not lost and not wrong:
            return None
        reason = f": {self.reason}" if self.reason else ""
        return f"{lost} of {len(pairs)} answers lost, {wrong} of the wrong length{reason}"

    def facts(self) -> dict[str, Any]:
        """Percentiles in milliseconds from when a client came, and who did the work."""
        counted = [
            (self.began + wish.at_s, answer)
            for wish, answer in zip(self.arrivals, self.answers, strict=True)
            if answer is not None and wish.at_s >= SETTLE_S
        ]
        tokens = Counter[int]()
        for answer in self.answers:
            if answer is not None:
                tokens[answer.record.pid] += answer.record.num_tokens
        by_worker = sorted(tokens.values()) + [0] * (self.num_workers - len(tokens))
        return {
            "requests": len(self.arrivals),
            "counted": len(counted),
            "ttft_ms": percentiles([answer.record.first_at - at for at, answer in counted]),
            "latency_ms": percentiles([answer.done_at - at for at, answer in counted]),
            "tokens_by_worker": sorted(by_worker, reverse=True),
        }


def percentiles(
    seconds: Sequence[float], shares: Sequence[int] = PERCENTILES, digits: int = 1
) -> dict[str, float]:
    """By rank, in milliseconds; of nothing, none."""
    ranked = sorted(seconds)
    return {
        str(share): round(1000 * ranked[max(0, math.ceil(len(ranked) * share / 100) - 1)], digits)
        for share in shares
        if ranked
    }


def offer(site: Site, arrivals: Sequence[Arrival], num_workers: int) -> Offered:
    """Send every request when it is due; returns when all are answered."""
    bodies = [write_body(arrival.num_tokens) for arrival in arrivals]
    with first_served():
        began, seconds, raw = asyncio.run(_offer(f"{site.url}/infer", arrivals, bodies))
    answers: list[Answer | None] = []
    reason = ""
    for one in raw:
        try:
            answers.append(read_answer(one))
        except (LookupError, TypeError, ValueError, OSError, aiohttp.ClientError) as error:
            answers.append(None)
            reason = reason or f"{type(error).__name__}: {error}"
    return Offered(began, seconds, arrivals, answers, num_workers, reason)


def write_body(num_tokens: int) -> bytes:
    """The limit is the same in all requests: it tells nobody how long one will be."""
    params = {"max_tokens": MAX_TOKENS}
    return json.dumps({"instances": [write_prompt(num_tokens)], "params": params}).encode()


Raw = tuple[float, int, bytes]
"""When it was answered, status and body."""


def read_answer(raw: Raw | BaseException) -> Answer:
    """Raises what went wrong."""
    if isinstance(raw, BaseException):
        raise raw
    done_at, status, body = raw
    if status != 200:
        raise ValueError(f"status {status}, {body[:200]!r}")
    return Answer(done_at, read_record(json.loads(body)[0]))


async def _offer(
    url: str, arrivals: Sequence[Arrival], bodies: Sequence[bytes]
) -> tuple[float, float, list[Raw | BaseException]]:
    async with open_session() as session:
        asked = []
        began = time.monotonic()
        for arrival, body in zip(arrivals, bodies, strict=True):
            delay_s = began + arrival.at_s - time.monotonic()
            if delay_s > 0:
                await asyncio.sleep(delay_s)
            asked.append(asyncio.create_task(ask(session, url, body)))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return began, time.monotonic() - began, answers


def open_session() -> aiohttp.ClientSession:
    """As many connections as are in use at once, each used again and again."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=TIMEOUT_S)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    headers = {"Content-Type": "application/json"}
    return aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers)


async def ask(session: aiohttp.ClientSession, url: str, body: bytes) -> Raw:
    """One request."""
    async with session.post(url, data=body) as response:
        answer = await response.read()
        return time.monotonic(), response.status, answer
