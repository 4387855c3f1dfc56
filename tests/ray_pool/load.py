"""Clients of a pool with the scripted engine, over a change of its replicas."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from tests.pool import Pool


@dataclass
class Load:
    """Clients that ask one request after the other, and what became of each."""

    pool: Pool
    num_clients: int = 6
    took: list[tuple[float, float]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._ask) for _ in range(self.num_clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self.stop.is_set():
            began = time.monotonic()
            try:
                assert self.pool.infer("ab", max_tokens=20) == ["ab" * 10]
            except Exception as error:
                self.lost.append(repr(error)[:300])
            self.took.append((began, time.monotonic() - began))
