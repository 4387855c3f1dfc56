"""The end of an event loop's tasks (worker process, on the loop)."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any


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
