"""Work beside the running batch: scores, vectors and beam searches (worker process).

They use the model's twin directly, on a thread of their own, while the batch goes on. Beam
searches run one at a time; scores that wait together run together, and so do vectors.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpupool.engines.base import Embedded, Failed, Finished, Scored
from gpupool.engines.outlet import Outlet
from gpupool.errors import Cancelled, EngineDead, EngineError, RequestError

log = logging.getLogger(__name__)

Check = Callable[[], None]
"""Called between the steps of a job: the sign of life, and the place where it gives up."""

Search = Callable[[Check], Finished]


@dataclass(slots=True)
class Job:
    """One request: a search to run, or a prompt and what is done with it and others like it."""

    outlet: Outlet
    prompt: Sequence[int] = ()
    num_top: int = 0
    together: Together | None = None
    search: Search | None = None


Together = Callable[[Sequence[Job], Check], Sequence[Scored | Embedded]]
"""The last event of each of the jobs."""


class Beside:
    """The thread and its queue, from `start` to `stop`. A group of prompts has at most
    `group_tokens` tokens, padding included."""

    def __init__(self, group_tokens: int) -> None:
        self._group_tokens = group_tokens
        self._waiting: deque[Job] = deque()
        self._jobs: dict[str, Job] = {}
        self._changed = threading.Condition()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._work, name="beside", daemon=True)
        self.last_progress = time.monotonic()

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    @property
    def num_inflight(self) -> int:
        """Jobs that run or wait to run."""
        return len(self._jobs)

    def add(self, job: Job) -> None:
        """Queue a request; its outlet ends in any case. Any thread."""
        with self._changed:
            if not self._is_stopped:
                self._jobs[job.outlet.request_id] = job
                self._waiting.append(job)
                self._changed.notify()
                return
        job.outlet.end(Failed(EngineDead("the engine is stopping")))

    def cancel(self, request_id: str) -> None:
        """End a request at once; its work stops within one step. Any thread."""
        with self._changed:
            job = self._jobs.get(request_id)
        if job is not None:
            job.outlet.end(Failed(Cancelled("the request was cancelled")))

    def stop(self, timeout_s: float, reason: str) -> None:
        """End every request with EngineDead, and the thread after its running step."""
        with self._changed:
            self._is_stopped = True
            jobs = list(self._jobs.values())
            self._changed.notify()
        for job in jobs:
            job.outlet.end(Failed(EngineDead(reason)))
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    # On the thread.

    def _work(self) -> None:
        while jobs := self._take():
            self._run(jobs)
            with self._changed:
                for job in jobs:
                    if self._jobs.get(job.outlet.request_id) is job:
                        del self._jobs[job.outlet.request_id]

    def _take(self) -> list[Job]:
        """The oldest job, and those that can go with it; nothing at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_stopped)
            if self._is_stopped:
                return []
            group = [self._waiting.popleft()]
            if group[0].search is None:
                group += self._companions(group[0])
        return group

    def _companions(self, first: Job) -> list[Job]:
        """Waiting jobs of the same kind and much the same length: each is padded to the longest."""
        found: list[Job] = []
        longest = len(first.prompt)
        for job in self._waiting:
            length = len(job.prompt)
            if job.together == first.together and longest <= 2 * length <= 4 * longest:
                if max(longest, length) * (len(found) + 2) > self._group_tokens:
                    break
                longest = max(longest, length)
                found.append(job)
        for job in found:
            self._waiting.remove(job)
        return found

    def _run(self, jobs: list[Job]) -> None:
        def check() -> None:
            if all(job.outlet.is_over for job in jobs):
                raise Cancelled("the request was cancelled")
            self.last_progress = time.monotonic()

        try:
            check()
            self._answer(jobs, check)
        except RequestError as error:
            _fail(jobs, error)
        except Exception:
            if len(jobs) > 1:
                # One of them may be the cause; the others must not suffer for it.
                for job in jobs:
                    self._run([job])
                return
            log.exception("work beside the batch failed request=%s", jobs[0].outlet.request_id)
            _fail(jobs, EngineError("the engine failed on this request"))

    def _answer(self, jobs: list[Job], check: Check) -> None:
        search, together = jobs[0].search, jobs[0].together
        if search is not None:
            jobs[0].outlet.end(search(check))
        if together is not None:
            for job, event in zip(jobs, together(jobs, check), strict=True):
                job.outlet.end(event)


def _fail(jobs: list[Job], error: RequestError) -> None:
    for job in jobs:
        job.outlet.end(Failed(error))
