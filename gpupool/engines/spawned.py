"""What others start on the event loop of an engine, until it ends (worker process, on the loop)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from gpupool.tasks import cancel_once

T = TypeVar("T")


class Spawned:
    """Cancels what runs when the engine ends, and what begins after that."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._has_ended = False

    async def track(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it as the current task."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        if self._has_ended:
            # The end came before this began. It takes its first step, so that it can clean up.
            asyncio.get_running_loop().call_soon(cancel_once, task)
        try:
            return await work
        finally:
            self._tasks.discard(task)

    def end(self) -> None:
        """The engine ends."""
        self._has_ended = True
        for task in self._tasks:
            cancel_once(task)
