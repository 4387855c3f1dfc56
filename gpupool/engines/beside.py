"""Work beside the running batch: scores and beam searches, one at a time (worker process).

They use the model directly, on a thread of their own, while the batch goes on.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gpupool.engines.base import Failed, Finished, Scored
from gpupool.engines.outlet import Outlet
from gpupool.errors import Cancelled, EngineDead, EngineError, RequestError

log = logging.getLogger(__name__)


Check = Callable[[], None]
"""Called between the steps of a job: the sign of life, and the place where it gives up."""

Work = Callable[[Check], Finished | Scored]


@dataclass(slots=True)
class Job:
    """One request."""

    outlet: Outlet
    work: Work
    is_cancelled: threading.Event = field(default_factory=threading.Event)


class Beside:
    """The thread and its queue, from `start` to `stop`."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._work, name="beside", daemon=True)
        self.last_progress = time.monotonic()

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def add(self, outlet: Outlet, work: Work) -> None:
        """Queue a request; its outlet ends in any case. Any thread."""
        job = Job(outlet, work)
        with self._lock:
            if not self._is_stopped:
                self._jobs[outlet.request_id] = job
                self._queue.put(job)
                return
        outlet.end(Failed(EngineDead("the engine is stopping")))

    def cancel(self, request_id: str) -> None:
        """End a request at once; its work stops within one step. Any thread."""
        with self._lock:
            job = self._jobs.get(request_id)
        if job is not None:
            job.is_cancelled.set()
            job.outlet.end(Failed(Cancelled("the request was cancelled")))

    def stop(self, timeout_s: float, reason: str) -> None:
        """End every request with EngineDead, and the thread after its running step."""
        with self._lock:
            self._is_stopped = True
            jobs = list(self._jobs.values())
        for job in jobs:
            job.is_cancelled.set()
            job.outlet.end(Failed(EngineDead(reason)))
        self._queue.put(None)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            self._run(job)
            with self._lock:
                if self._jobs.get(job.outlet.request_id) is job:
                    del self._jobs[job.outlet.request_id]

    def _run(self, job: Job) -> None:
        def check() -> None:
            if job.is_cancelled.is_set():
                raise Cancelled("the request was cancelled")
            self.last_progress = time.monotonic()

        try:
            check()
            job.outlet.end(job.work(check))
        except RequestError as error:
            job.outlet.end(Failed(error))
        except Exception:
            log.exception("a score or beam search failed request=%s", job.outlet.request_id)
            job.outlet.end(Failed(EngineError("the engine failed on this request")))
