"""The end of an event loop's tasks, and of what no client waits for any more (worker process, on
the loop)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from gpupool.errors import Cancelled


def cancel_once(task: asyncio.Task[Any]) -> None:
    """A second cancellation would break off the cleaning up after the first."""
    if not task.cancelling():
        task.cancel()


async def end_tasks(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel what still runs, and wait for it."""
    for task in tasks:
        cancel_once(task)
    await asyncio.gather(*tasks, return_exceptions=True)


async def end_other_tasks() -> None:
    """All of this event loop's but the one that asks."""
    await end_tasks([task for task in asyncio.all_tasks() if task is not asyncio.current_task()])


async def unless_gone(
    work: Awaitable[None], receive: Callable[[], Awaitable[Mapping[str, Any]]]
) -> None:
    """Do the work of an ASGI application; Cancelled if its client leaves. Both end before this
    does."""
    answering = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise Cancelled("the client closed the connection")
    finally:
        for task in (answering, leaving):
            task.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)
    answering.result()


async def _until_gone(receive: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
