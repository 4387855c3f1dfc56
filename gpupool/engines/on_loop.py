"""What engines have in common whose requests run on a RequestLoop (worker process)."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from gpupool.engines.base import Report
from gpupool.engines.request_loop import RequestLoop

T = TypeVar("T")


class OnLoop(ABC):
    """The part of Engine and SpeaksOpenAI that the loop answers. A subclass says what `_load`
    does, and ends in `die` what it has besides."""

    def __init__(self, thread_name: str) -> None:
        self._progress = time.monotonic()
        # Nothing was due while nothing ran.
        self._requests = RequestLoop(on_busy=self._note_progress, name=thread_name)

    def load(self, report: Report) -> None:
        """See Engine.load."""
        try:
            self._load(report)
        except BaseException:
            self.die()
            raise

    @abstractmethod
    def _load(self, report: Report) -> None: ...

    @abstractmethod
    def die(self) -> None:
        """See Engine.die."""

    def cancel(self, request_id: str) -> None:
        """See Engine.cancel. Closing the connection is what stops the one who computes."""
        self._requests.cancel(request_id)

    def spawn(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """See engines.base.SpeaksOpenAI."""
        return self._requests.spawn(work)

    def is_lost(self) -> bool:
        """See engines.base.SpeaksOpenAI. The loop hears of an end before anybody fails by it."""
        return self._requests.end_reason is not None

    @property
    def dead_reason(self) -> str | None:
        """See Engine.dead_reason."""
        return self._requests.end_reason

    def last_progress(self) -> float:
        """See Engine.last_progress."""
        return self._progress

    def _note_progress(self) -> None:
        self._progress = time.monotonic()
