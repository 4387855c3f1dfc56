"""Clients that ask a pool for one token, again and again, on connections that are kept (driver).

Cheaper than a library's, which would take longer to ask than the pool to answer.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.load import TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Asked:
    """One run. All requests are for one token."""

    seconds: float
    num_asked: int
    num_answered: int
    reason: str = ""

    def count_tokens(self) -> int:
        return self.num_answered

    def facts(self) -> dict[str, Any]:
        return {}

    def find_fault(self) -> str | None:
        lost = self.num_asked - self.num_answered
        return f"{lost} of {self.num_asked} answers lost: {self.reason}" if lost else None


def ask_for_tokens(url: str, num_clients: int, num_requests: int) -> Asked:
    """So many requests in all, by so many clients that ask again as soon as they are answered."""
    return asyncio.run(_ask_all(url, num_clients, num_requests))


async def _ask_all(url: str, num_clients: int, num_requests: int) -> Asked:
    host, _, port = url.removeprefix("http://").partition(":")
    body = json.dumps({"instances": ["a"], "params": {"max_tokens": 1}})
    head = f"POST /infer HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
    left = iter(range(num_requests))
    began = time.monotonic()
    async with asyncio.timeout(TIMEOUT_S):
        found = await asyncio.gather(
            *(_ask(host, int(port), request, left) for _ in range(num_clients))
        )
    seconds = time.monotonic() - began
    num_answered = sum(n for n, _ in found)
    return Asked(seconds, num_requests, num_answered, next((why for _, why in found if why), ""))


async def _ask(host: str, port: int, request: bytes, left: Iterator[int]) -> tuple[int, str]:
    """How many answers one client got, and why it got no more."""
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
