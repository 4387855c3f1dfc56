"""Counters and histograms of one pool, in memory shared by all its processes.

A block per row of the scoreboard, written by the worker that has the row and read by whoever is
scraped. Blocks outlive their workers and are never set back, so what is summed up over them only
grows. Every number is one aligned machine word: a worker killed at any moment leaves valid ones.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import threading
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from gpupool import page

GENERATING_ROUTES = (
    "/infer",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/v1/score",
    "/v1/rerank",
    "/pooling",
    "/classify",
)
ROUTES = (
    *GENERATING_ROUTES,
    "/v1/models",
    "/tokenize",
    "/detokenize",
    "/v1/other",
    "/livez",
    "/readyz",
    "/health",
    "/metrics",
    "/pool",
    "/",
    "other",
    "unreadable",
)
"""The label `route`. Few and fixed: whoever sends odd paths must not be able to make labels."""

NAMES = {
    "/score": "/v1/score",
    "/rerank": "/v1/rerank",
    "/v2/rerank": "/v1/rerank",
    **dict.fromkeys(page.PATHS, "/"),
}
"""Other names of a route; they count as one."""

NUM_STATUSES = 600
TOO_MANY = 429
REASONS = ("full", "key_limit")
"""Why a 429 was the pool's own."""
MAX_BUCKETS = 16


@dataclass(frozen=True, slots=True)
class Buckets:
    """One kind of histogram."""

    help: str
    bounds: tuple[float, ...]  # seconds; one more bucket, without a bound, follows


HISTOGRAMS = {
    "queue_time_seconds": Buckets(
        "From the whole request to its first sequence being in the engine.",
        (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
    ),
    "time_to_first_token_seconds": Buckets(
        "From the whole request to the first generated token of any of its sequences.",
        (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
    ),
    "inter_token_latency_seconds": Buckets(
        "Between two generated tokens of a sequence.",
        (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10),
    ),
    "request_duration_seconds": Buckets(
        "From the whole request to its answer, for generations that were answered 200.",
        (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600),
    ),
}


class _Histogram(ctypes.Structure):
    _fields_ = (("counts", ctypes.c_uint64 * MAX_BUCKETS), ("sum", ctypes.c_double))


class _Block(ctypes.Structure):
    _fields_ = (
        ("requests", ctypes.c_uint64 * NUM_STATUSES * len(ROUTES)),
        ("refusals", ctypes.c_uint64 * len(REASONS) * len(ROUTES)),
        ("prompt_tokens", ctypes.c_uint64),
        ("generated_tokens", ctypes.c_uint64),
        ("histograms", _Histogram * len(HISTOGRAMS)),
    )


@dataclass(frozen=True, slots=True)
class Observations:
    """What a histogram holds: `counts[i]` values in the i-th bucket alone, not cumulative."""

    counts: tuple[int, ...]
    sum: float


class Totals:
    """One row's numbers. To be written by the one process that has the row, by any thread."""

    def __init__(self, block: _Block) -> None:
        self._block = block
        self._lock = threading.Lock()
        self._histograms = {
            name: (histogram, histogram.counts, buckets.bounds)
            for (name, buckets), histogram in zip(HISTOGRAMS.items(), block.histograms, strict=True)
        }

    def request(self, route: str, status: int, reason: str = "") -> None:
        """Count an HTTP request, once, when its answer is decided. A request that ends without
        an answer is not counted. One of REASONS is given for a 429 alone."""
        index = ROUTES.index(label_of(route))
        with self._lock:
            if reason:
                self._block.refusals[index][REASONS.index(reason)] += 1
            else:
                self._block.requests[index][status if 0 <= status < NUM_STATUSES else 0] += 1

    def tokens(self, *, prompt: int = 0, generated: int = 0) -> None:
        """Count the tokens of an answer that is about to be given."""
        with self._lock:
            self._block.prompt_tokens += prompt
            self._block.generated_tokens += generated

    def observe(self, name: str, seconds: float, count: int = 1) -> None:
        """Add `count` equal values to a histogram of HISTOGRAMS."""
        histogram, counts, bounds = self._histograms[name]
        seconds = max(0.0, seconds)
        bucket = bisect_left(bounds, seconds)
        with self._lock:
            counts[bucket] += count
            histogram.sum += seconds * count

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts that were answered."""
        return int(self._block.prompt_tokens)

    @property
    def generated_tokens(self) -> int:
        """Tokens of the completions that were given."""
        return int(self._block.generated_tokens)

    def requests(self) -> dict[tuple[str, int, str], int]:
        """How many requests were answered, by route, status and reason."""
        found = {
            (route, status, ""): count
            for route, counts in zip(ROUTES, self._block.requests, strict=True)
            for status, count in enumerate(counts[:])
            if count
        }
        refused = {
            (route, TOO_MANY, reason): count
            for route, counts in zip(ROUTES, self._block.refusals, strict=True)
            for reason, count in zip(REASONS, counts, strict=True)
            if count
        }
        return found | refused

    def observations(self, name: str) -> Observations:
        """The histogram of that name."""
        histogram, counts, bounds = self._histograms[name]
        return Observations(tuple(counts[: len(bounds) + 1]), float(histogram.sum))


class PoolTotals:
    """The totals of all rows; made before the first fork."""

    def __init__(self, num_rows: int) -> None:
        self._memory = mmap.mmap(-1, ctypes.sizeof(_Block) * num_rows)
        blocks = (_Block * num_rows).from_buffer(self._memory)
        self._rows = tuple(Totals(block) for block in blocks)

    def __getitem__(self, index: int) -> Totals:
        return self._rows[index]


def served(rows: Iterable[Totals]) -> int:
    """Generations that were answered 200."""
    return sum(
        count
        for totals in rows
        for (route, status, _), count in totals.requests().items()
        if route in GENERATING_ROUTES and status == 200
    )


def added(observations: Iterable[Observations]) -> Observations:
    """Histograms of one kind in one."""
    found = tuple(observations)
    counts = zip(*(one.counts for one in found), strict=True)
    return Observations(tuple(map(sum, counts)), math.fsum(one.sum for one in found))


def label_of(route: str) -> str:
    """Under which of ROUTES a path counts."""
    route = NAMES.get(route, route)
    if route in ROUTES:
        return route
    return "/v1/other" if route.startswith("/v1/") else "other"
