"""Clients that ask again as soon as they are answered: a closed loop, which finds how many
requests a server can take (driver)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from benchmarks.load import first_served
from benchmarks.open_loop import ask, open_session, percentiles, read_answer, write_body
from benchmarks.site import Site


@dataclass(frozen=True, slots=True)
class Asked:
    """One run in a closed loop."""

    seconds: float
    times_s: Sequence[float]  # of each answer
    reason: str = ""  # why a client gave up

    def count_tokens(self) -> int:
        """Each answer has one."""
        return len(self.times_s)

    def find_fault(self) -> str | None:
        """Why the run does not count, or None."""
        return self.reason or None

    def facts(self) -> dict[str, Any]:
        """How long the answers took."""
        return {"latency_ms": percentiles(self.times_s)}


def ask_again(site: Site, num_clients: int, seconds: float) -> Asked:
    """So many clients with a connection each, for so long."""
    try:
        with first_served():
            return asyncio.run(_ask_again(f"{site.url}/infer", num_clients, seconds))
    except (LookupError, TypeError, ValueError, OSError, aiohttp.ClientError) as error:
        return Asked(seconds, (), f"{type(error).__name__}: {error}")


async def _ask_again(url: str, num_clients: int, seconds: float) -> Asked:
    times_s: list[float] = []
    body = write_body(1)
    async with open_session() as session:
        began = time.monotonic()

        async def be_client() -> None:
            asked_at = began
            while asked_at < began + seconds:
                asked_at = time.monotonic()
                answer = read_answer(await ask(session, url, body))
                times_s.append(answer.done_at - asked_at)

        await asyncio.gather(*(be_client() for _ in range(num_clients)))
        return Asked(time.monotonic() - began, times_s)
