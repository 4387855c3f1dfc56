"""A worker's share of a batch that some worker of the pool coordinates (worker process).

A lane is a private connection between the coordinator's thread and a thread here: jobs come in,
outcomes go back as they are there. When the coordinator goes away, its jobs are cancelled.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from gpupool.batch import AnyJob, Batch, Outcome
from gpupool.clock import RequestClock
from gpupool.engines.base import Failed
from gpupool.errors import EngineError, RequestError
from gpupool.replica import Replica
from gpupool.slots import Slots
from gpupool.totals import Totals

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Jobs:
    """Numbered jobs of a batch. A lane that ends without None tells of a killed coordinator."""

    jobs: Sequence[tuple[int, AnyJob]]
    began: float  # when the client's request was whole (monotonic)
    is_first: bool  # nobody had any of this batch before


Outcomes = Sequence[tuple[int, Outcome]]
Answer = tuple[int, Outcomes]
"""How many jobs were taken over since the last answer, and the outcomes that are there."""


class _Wake:
    """A file descriptor that becomes readable when something is put."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over: list[tuple[int, Outcome]] = []
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def put(self, index: int, outcome: Outcome) -> None:
        with self._lock:
            self._over.append((index, outcome))
            if self.fd >= 0:
                os.eventfd_write(self.fd, 1)

    def take_all(self) -> list[tuple[int, Outcome]]:
        with self._lock:
            os.eventfd_read(self.fd)
            over, self._over = self._over, []
        return over

    def close(self) -> None:
        """Engines may still put what was cancelled."""
        with self._lock:
            os.close(self.fd)
            self.fd = -1


class Lane:
    """Serves one coordinator; `serve` runs on a thread of its own."""

    def __init__(self, sock: socket.socket, replica: Replica, slots: Slots, totals: Totals) -> None:
        self._totals = totals
        self._replica = replica
        self._slots = slots
        self._wake = _Wake()
        self._coordinator: Connection[Answer, Jobs | None] = Connection(sock.detach())
        self._running: set[int] = set()
        self._batch: Batch | None = None
        self.is_orphaned = True

    def serve(self) -> None:
        """Until the coordinator closes."""
        try:
            while True:
                for ready in wait([self._coordinator, self._wake.fd]):
                    if ready == self._wake.fd:
                        self._send_over()
                    else:
                        jobs = self._coordinator.recv()
                        if jobs is None:
                            self.is_orphaned = False
                            return
                        self._start(jobs)
        except (EOFError, OSError):
            log.debug("a coordinator is done")
        except Exception:
            log.exception("a lane broke")
        finally:
            self._coordinator.close()
            for index in self._running:
                if self._batch is not None:
                    self._batch.cancel(index)
            self._wake.close()

    def _start(self, given: Jobs) -> None:
        jobs = given.jobs
        self._slots.take(len(jobs))
        try:
            self._coordinator.send((len(jobs), ()))
        except OSError:  # it left right after it had sent them
            self._slots.give_back(len(jobs))
            raise
        try:
            batch = self._batch_of(given)
        except RequestError as error:
            for index, _ in jobs:
                self._note_over(index, Failed(error))
            return
        for index, job in jobs:
            self._running.add(index)
            batch.start(index, job)

    def _batch_of(self, given: Jobs) -> Batch:
        if self._batch is None:
            totals, is_first = self._totals, given.is_first
            clock = RequestClock(totals, given.began, is_share=True, is_first=is_first)
            self._batch = Batch(self._replica, clock, self._note_over)
        return self._batch

    def _note_over(self, index: int, outcome: Outcome) -> None:
        self._slots.give_back()
        self._wake.put(index, outcome)

    def _send_over(self) -> None:
        over = self._wake.take_all()
        self._running.difference_update(index for index, _ in over)
        try:
            self._coordinator.send((0, over))
        except (TypeError, ValueError, AttributeError):
            log.exception("an outcome cannot be sent")
            failed = Failed(EngineError("the engine's answer could not be sent"))
            self._coordinator.send((0, [(index, failed) for index, _ in over]))
