"""One item of a batch that another replica coordinates (replica process, Serve's event loop)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass

from gpupool.batch import AnyJob, Batch, Outcome
from gpupool.clock import RequestClock
from gpupool.engines.base import Failed
from gpupool.errors import RequestError
from gpupool.replica import Replica
from gpupool.totals import Totals


@dataclass(frozen=True, slots=True)
class Piece:
    """What is sent of it."""

    job: AnyJob
    age_s: float
    """Of the client's request; the clocks of two nodes have nothing in common."""
    is_first: bool
    """Whether nobody had any of this batch before."""


@dataclass(frozen=True, slots=True)
class PieceResult:
    """What comes back, and from the replica of which rank."""

    outcome: Outcome
    rank: int


async def run_piece(replica: Replica, totals: Totals, piece: Piece) -> PieceResult:
    """Run it in the engine; cancelled there when this is. Needs no thread, which may all be held
    by those who coordinate."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[Outcome] = loop.create_future()

    def note(index: int, outcome: Outcome) -> None:
        with contextlib.suppress(RuntimeError):  # the replica has ended
            loop.call_soon_threadsafe(_settle, over, outcome)

    began = time.monotonic() - piece.age_s
    clock = RequestClock(totals, began, is_share=True, is_first=piece.is_first)
    try:
        batch = Batch(replica, clock, note)
        batch.start(0, piece.job)
    except RequestError as error:
        return PieceResult(Failed(error), replica.slot)
    try:
        return PieceResult(await over, replica.slot)
    except asyncio.CancelledError:
        batch.cancel(0)
        raise


def _settle(over: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not over.done():
        over.set_result(outcome)
