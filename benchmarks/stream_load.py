"""The load client of streams: many at once, from one event loop (driver).

While the clock runs, a piece of an answer is only kept with the time at which it was read. What it
says is found out afterwards.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any
from urllib.parse import urlsplit

from benchmarks.load import first_served
from benchmarks.open_loop import percentiles
from benchmarks.paced_client import Stamp, read_stamps
from benchmarks.site import Site

SEED = 20261121
START_S = 1.0
TIMEOUT_S = 60
SHARES = (50, 99)
DIGITS = 3
PATH = "/v1/completions"
PROMPT = "Tell me how bread rises, and why the sea is salt."
DATA = b"data: "
DONE = b"[DONE]"


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a stream."""

    stamp: Stamp
    read_at: float  # by the same clock


@dataclass(frozen=True, slots=True)
class Answer:
    """One stream that was read to its end."""

    asked_at: float
    num_events: int  # with text; a front end that is late puts several tokens into one
    tokens: Sequence[Token]


@dataclass(frozen=True, slots=True)
class Streamed:
    """One run of streams, None for one that was lost."""

    seconds: float
    num_tokens: int  # that each was to give
    answers: Sequence[Answer | None]
    reason: str = ""  # of the first that was lost

    def count_tokens(self) -> int:
        """All that were read."""
        return sum(len(answer.tokens) for answer in self.answers if answer)

    def find_fault(self) -> str | None:
        """Why the run does not count, or None."""
        lost = sum(answer is None for answer in self.answers)
        wrong = sum(a is not None and len(a.tokens) != self.num_tokens for a in self.answers)
        if not lost and not wrong:
            return None
        reason = f": {self.reason}" if self.reason else ""
        return f"{lost} of {len(self.answers)} streams lost, {wrong} of the wrong length{reason}"

    def facts(self) -> dict[str, Any]:
        """In milliseconds; see streams_report for what they mean."""
        answers = [answer for answer in self.answers if answer and answer.tokens]
        tokens = [token for answer in answers for token in answer.tokens]
        gaps = [gap for answer in answers for gap in gaps_of(answer)]
        return {
            "ttft_added_ms": percentiles(
                [ttft_added(answer) for answer in answers], SHARES, DIGITS
            ),
            "token_added_ms": percentiles(
                [token.read_at - token.stamp.made_at for token in tokens], SHARES, DIGITS
            ),
            "gap_off_ms": percentiles([abs(read - made) for read, made in gaps], SHARES, DIGITS),
            "events": sum(answer.num_events for answer in answers),
        }


def ttft_added(answer: Answer) -> float:
    """On the way to the engine, and from there back to the client."""
    first = answer.tokens[0]
    return first.stamp.came_at - answer.asked_at + first.read_at - first.stamp.made_at


def gaps_of(answer: Answer) -> list[tuple[float, float]]:
    """Between a token and the next one: at the client, and in the engine."""
    return [
        (second.read_at - first.read_at, second.stamp.made_at - first.stamp.made_at)
        for first, second in pairwise(answer.tokens)
    ]


def draw_starts(index: int, count: int) -> list[float]:
    """When the streams of a round begin, in seconds."""
    chance = random.Random(f"{SEED} {index}")
    return sorted(chance.uniform(0, START_S) for _ in range(count))


class _Reader(asyncio.Protocol):
    """One connection, for one request."""

    def __init__(self, over: asyncio.Future[None]) -> None:
        self._over = over
        # Two lists of plain values, as the garbage collector has nothing to look for in them.
        self.times: list[float] = []
        self.pieces: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.times.append(time.monotonic())
        self.pieces.append(data)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._over.done():
            self._over.set_result(None)


@dataclass(frozen=True, slots=True)
class _Raw:
    asked_at: float
    times: Sequence[float]
    pieces: Sequence[bytes]


def stream(site: Site, model: str, starts: Sequence[float], num_tokens: int) -> Streamed:
    """Begin every stream when it is due; returns when all are over."""
    import uvloop

    parts = urlsplit(site.url)
    request = write_request(parts.netloc, model, num_tokens)
    assert parts.hostname is not None
    assert parts.port is not None
    with first_served(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seconds, raws = runner.run(_stream(parts.hostname, parts.port, request, starts))
    answers: list[Answer | None] = []
    reason = ""
    for raw in raws:
        try:
            if isinstance(raw, BaseException):
                raise raw
            answers.append(read_answer(raw.asked_at, raw.times, raw.pieces))
        except (LookupError, TypeError, ValueError, OSError) as error:
            answers.append(None)
            reason = reason or f"{type(error).__name__}: {error}"
    return Streamed(seconds, num_tokens, answers, reason)


def write_request(host: str, model: str, num_tokens: int) -> bytes:
    """The whole of it."""
    asked = {"model": model, "prompt": PROMPT, "max_tokens": num_tokens, "stream": True}
    body = json.dumps(asked).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


async def _stream(
    host: str, port: int, request: bytes, starts: Sequence[float]
) -> tuple[float, list[_Raw | BaseException]]:
    loop = asyncio.get_running_loop()

    async def be_client() -> _Raw:
        over = loop.create_future()
        asked_at = time.monotonic()
        async with asyncio.timeout(TIMEOUT_S):
            transport, reader = await loop.create_connection(lambda: _Reader(over), host, port)
            try:
                transport.write(request)
                await over
            finally:
                transport.close()
        return _Raw(asked_at, reader.times, reader.pieces)

    began = time.monotonic()
    clients = []
    for start in starts:
        delay_s = began + start - time.monotonic()
        if delay_s > 0:
            await asyncio.sleep(delay_s)
        clients.append(loop.create_task(be_client()))
    raws = await asyncio.gather(*clients, return_exceptions=True)
    return time.monotonic() - began, raws


def read_answer(asked_at: float, times: Sequence[float], pieces: Sequence[bytes]) -> Answer:
    """What was read, and when; ValueError for an answer that is no whole stream."""
    head, found, _ = b"".join(pieces).partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    if not found or status != [b"200"]:
        raise ValueError(f"no answer of status 200: {head[:200]!r}")
    ends = list(accumulate(map(len, pieces)))
    tokens: list[Token] = []
    num_events = 0
    is_done = False
    for end, data in _read_events(b"".join(pieces), len(head) + 4):
        if data == DONE:
            is_done = True
            break
        text = json.loads(data)["choices"][0]["text"]
        # The piece with the event's last byte was the one that the client waited for.
        read_at = times[bisect_left(ends, end)]
        tokens += [Token(stamp, read_at) for stamp in read_stamps(text)]
        num_events += 1
    if not is_done:
        raise ValueError("the stream has no end")
    return Answer(asked_at, num_events, tokens)


def _read_events(raw: bytes, start: int) -> list[tuple[int, bytes]]:
    """The data of each event of a chunked body that begins at `start`, and where in `raw` the
    chunk with its last byte ends."""
    events: list[tuple[int, bytes]] = []
    rest = b""
    while size := int(raw[start : (line_end := raw.index(b"\r\n", start))], 16):
        start = line_end + 2 + size
        *whole, rest = (rest + raw[line_end + 2 : start]).split(b"\n\n")
        events += [(start, event.removeprefix(DATA)) for event in whole]
        start += 2
    return events
