"""Clients that keep a pool busy, and a watch over what its workers do meanwhile."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.pool import Pool


@dataclass
class Load:
    """Closed-loop clients, each on its own connection: ask, wait for the answer, ask again."""

    pool: Pool
    num_clients: int
    max_tokens: int
    path: str = "/infer"
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask_on, args=(number,))
            for number in range(self.num_clients)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask_on(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.pool.port, timeout=60)
        for count in range(1_000_000):
            if self._stop.is_set():
                break
            prompt = f"{number:03}-{count:06}"
            began = time.monotonic()
            try:
                status, answer = ask(connection, self.path, prompt, self.max_tokens)
            except (OSError, http.client.HTTPException) as error:
                self.faults.append(f"{prompt}: {error!r}")
                connection.close()
                continue
            self.seconds.append(time.monotonic() - began)
            self.statuses[status] += 1
            if status == 200 and answer != [(prompt * self.max_tokens)[: self.max_tokens]]:
                self.faults.append(f"{prompt}: {answer!r}")
        connection.close()


def ask(
    connection: http.client.HTTPConnection, path: str, prompt: str, max_tokens: int
) -> tuple[int, Any]:
    body = {"instances": [prompt], "params": {"max_tokens": max_tokens}}
    connection.request("POST", path, json.dumps(body))
    response = connection.getresponse()
    return response.status, json.load(response)


@dataclass
class Watch:
    """What each worker has in flight, looked at a hundred times a second."""

    pool: Pool
    looks: list[tuple[float, list[int]]] = field(default_factory=list)

    def look(self, seconds: float) -> Watch:
        """Returns after so long."""
        connection = http.client.HTTPConnection("127.0.0.1", self.pool.port, timeout=60)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            connection.request("GET", "/pool")
            workers = json.load(connection.getresponse())["workers"]
            self.looks.append((time.monotonic(), [worker["inflight"] for worker in workers]))
            time.sleep(0.005)
        connection.close()
        return self

    def busiest_over_ideal(self) -> float:
        """The mean in flight of the busiest worker, over what each would have in equal parts."""
        columns = list(zip(*(counts for _, counts in self.looks), strict=True))
        means = [sum(column) / len(column) for column in columns]
        return max(means) * len(means) / sum(means)

    def idle_share(self) -> float:
        """The part of the workers' time in which one is idle while another has two or more."""
        idle = sum(counts.count(0) for _, counts in self.looks if max(counts) >= 2)
        return idle / sum(len(counts) for _, counts in self.looks)

    def longest_idle_s(self) -> float:
        """The longest such time of one worker at a stretch."""
        longest = 0.0
        for worker in range(len(self.looks[0][1])):
            began: float | None = None
            for when, counts in self.looks:
                is_idle = counts[worker] == 0 and max(counts) >= 2
                began = (began or when) if is_idle else None
                longest = max(longest, when - began if began is not None else 0.0)
        return longest
