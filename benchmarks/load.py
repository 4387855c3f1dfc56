"""The load client: all requests of a run at once, from one event loop (driver).

Bodies are written before the clock starts and answers are read into objects after it stops, so
that little of the client's work is inside the measured time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from benchmarks.contender import Answered

TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that is ready, and how its requests and answers look."""

    url: str
    list_pids: Callable[[], list[int]]
    write_body: Callable[[str], Any]
    count_tokens: Callable[[Any], int]

    def pids(self) -> list[int]:
        return self.list_pids()

    def generate(self, prompts: Sequence[str]) -> Answered:
        """POST every prompt on a connection of its own; returns when all are answered."""
        bodies = [json.dumps(self.write_body(prompt)).encode() for prompt in prompts]
        with first_served():
            seconds, answers = asyncio.run(_send_all(self.url, bodies))
        tokens: list[int | None] = []
        reason = ""
        for answer in answers:
            try:
                tokens.append(self.count_tokens(_read(answer)))
            except (LookupError, TypeError, ValueError, OSError, aiohttp.ClientError) as error:
                tokens.append(None)
                reason = reason or f"{type(error).__name__}: {error}"
        return Answered(seconds, tuple(tokens), reason)


@contextlib.contextmanager
def first_served() -> Iterator[None]:
    """Within it this thread runs before all others, where it may. Where the contender computes on
    every core, the kernel has been seen to let the client wait for seconds between two requests,
    and the contender then runs a half-empty batch that is none of its doing."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _read(answer: tuple[int, bytes] | BaseException) -> Any:
    if isinstance(answer, BaseException):
        raise answer
    status, body = answer
    if status != 200:
        raise ValueError(f"status {status}, {body[:200]!r}")
    return json.loads(body)


async def _send_all(
    url: str, bodies: Sequence[bytes]
) -> tuple[float, list[tuple[int, bytes] | BaseException]]:
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began = time.perf_counter()
        answers = await asyncio.gather(
            *(_send(session, url, body) for body in bodies), return_exceptions=True
        )
        return time.perf_counter() - began, answers


async def _send(session: aiohttp.ClientSession, url: str, body: bytes) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json"}
    async with session.post(url, data=body, headers=headers) as response:
        return response.status, await response.read()
