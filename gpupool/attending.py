"""Waiting for an application that answers one request, and its end when nobody waits for it, or
its engine dies (worker process, the engine's event loop)."""

from __future__ import annotations

import asyncio
import logging

from gpupool.call import Call
from gpupool.errors import Moved

log = logging.getLogger(__name__)

LEAVE_S = 0.2  # for an application to end after it was told that its client is gone
LAST_WORDS_S = 1.0  # for one whose engine died, to say so


async def attend(work: asyncio.Task[None], gone: asyncio.Event, call: Call) -> None:
    """Until the work is over; `gone` is set when the client hangs up. Ends within moments then, or
    when this is cancelled."""
    loop = asyncio.get_running_loop()
    leaving = loop.create_task(gone.wait())
    patience_s = LEAVE_S
    with call.watching(lambda: loop.call_soon_threadsafe(gone.set)):
        try:
            await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # The engine died. Whoever ends all tasks of the loop has cancelled this one too.
            if not work.cancelling():
                work.cancel()
            patience_s = LAST_WORDS_S
        await asyncio.wait((work,), timeout=patience_s)
        leaving.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait((work,))


def note_end(work: asyncio.Task[None], path: str) -> None:
    """What became of work that is over; raises Moved if another worker is to answer."""
    if work.cancelled():
        return
    error = work.exception()
    if isinstance(error, Moved):
        raise error
    if error is not None:
        log.error("error while answering %s", path, exc_info=error)
