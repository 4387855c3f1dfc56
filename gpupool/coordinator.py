"""The thread that coordinates one batch over all workers (worker process, a handler thread).

It opens a lane to each ready worker, its own included, and feeds jobs as slots become free; the
scoreboard says where. It holds no slot itself. What a dead worker had is run again elsewhere.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from gpupool.batch import AnyJob, Outcome, Result
from gpupool.call import Call
from gpupool.clock import RequestClock
from gpupool.engines.base import Failed
from gpupool.errors import Cancelled, EngineDead, Unavailable
from gpupool.lane import Answer, Jobs
from gpupool.load_times import DEFAULT_RETRY_AFTER_S
from gpupool.mailbox import Message
from gpupool.scoreboard import Row
from gpupool.send_limit import limit_send
from gpupool.tries import Tries, is_of_dead_worker

if TYPE_CHECKING:
    from gpupool.fanout import Fanout

log = logging.getLogger(__name__)

MAX_REMEMBERED = 2_000  # items whose tries travel with a batch; hardly more run at once
LOOK_AGAIN_S = 0.05  # for slots that others gave back
LOOK_FOR_LEAVERS_S = 1.0
JOBS_A_MESSAGE = 32
SEND_TIMEOUT_S = 5


@dataclass(eq=False)
class _Lane:
    """The coordinator's end."""

    row: Row
    to: int
    pid: int
    conn: Connection[Jobs | None, Answer]
    running: set[int] = field(default_factory=set)
    num_sent: int = 0  # and not yet counted in the row


class Coordinator:
    """One batch."""

    def __init__(
        self, fanout: Fanout, jobs: Sequence[AnyJob], call: Call, clock: RequestClock
    ) -> None:
        self._clock = clock
        self._is_first = True
        self._fanout = fanout
        self._jobs = jobs
        self._call = call
        self._pending = deque(range(len(jobs)))
        self._tries = Tries(len(jobs))
        self._results: dict[int, Result] = {}
        self._lanes: dict[int, _Lane] = {}
        self._heirs: list[_Lane] = []
        """To the one sibling with a copy of the request, if there is one; no jobs go there."""
        self._nobody_since: float | None = None
        self._remember(call.history.tries)
        self._dead: set[tuple[int, int]] = set()
        """Rows and pids of workers whose engines died under this batch."""

    def run(self) -> list[Result]:
        """Blocks until every job has a result."""
        hangup = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            with self._call.watching(lambda: os.eventfd_write(hangup, 1)):
                while len(self._results) < len(self._jobs):
                    if self._call.is_gone:
                        raise Cancelled("the client closed the connection")
                    self._turn(hangup)
        finally:
            for lane in (*self._lanes.values(), *self._heirs):
                _end(lane)
            os.close(hangup)
        return [self._results[index] for index in range(len(self._jobs))]

    def _remember(self, tries: dict[int, int]) -> None:
        """Another worker coordinated this batch before its engine died. Results are made anew,
        but not by what kills engines."""
        for index, count in tries.items():
            self._tries[index] = count
            if self._tries.are_over(index):
                self._pending.remove(index)
                died = Failed(EngineDead("the engine died each time it ran this item"))
                self._results[index] = Result(died, self._fanout.replica.slot, count)

    def _died_under(self, index: int) -> bool:
        """Whether an engine died while it ran the item, which has no other result."""
        result = self._results.get(index)
        return self._tries[index] > 0 and (result is None or is_of_dead_worker(result.outcome))

    def _turn(self, hangup: int) -> None:
        hosts = self._hosts()
        self._leave(hosts)
        self._bequeath(hosts)
        if self._pending:
            self._open_lanes(hosts)
            self._feed(hosts)
            self._give_up_if_nobody()
        lanes = [*self._lanes.values(), *self._heirs]
        sources: list[Connection[Jobs | None, Answer] | int] = [hangup]
        sources += (lane.conn for lane in lanes)
        ready = wait(sources, LOOK_AGAIN_S if self._pending else LOOK_FOR_LEAVERS_S)
        for lane in lanes:
            if lane.conn in ready:
                self._receive(lane)

    # Where jobs go.

    def _hosts(self) -> list[int]:
        """Rows of the workers that may get jobs: those that are ready; while the whole pool
        drains, those that finish what was accepted."""
        rows = [
            (index, row)
            for index, row in enumerate(self._fanout.scoreboard)
            if (index, row.pid) not in self._dead
        ]
        ready = [index for index, row in rows if row.is_ready]
        return ready or [i for i, row in rows if row.pid and row.state == "draining" and row.slots]

    def _leave(self, hosts: list[int]) -> None:
        """Hold up no worker that leaves."""
        for lane in (*self._lanes.values(), *self._heirs):
            if lane.to not in hosts and not lane.running:
                self._close(lane)

    def _bequeath(self, hosts: list[int]) -> None:
        """One sibling has a copy of the request: should this worker be killed, the client's
        connection lives on there, and the batch is run again."""
        siblings = [to for to in hosts if to != self._fanout.index]
        if siblings and not self._heirs and self._call.copy_request is not None:
            self._heirs += self._connect(siblings[0], self._call.copy_request())

    def _open_lanes(self, hosts: list[int]) -> None:
        """To the idlest workers, to no more than there are jobs."""
        for to in sorted(hosts, key=self._load)[: len(self._pending)]:
            if to not in self._lanes:
                for lane in self._connect(to, Message("fanout", self._fanout.index)):
                    self._lanes[to] = lane

    def _connect(self, to: int, message: Message) -> list[_Lane]:
        """A lane, or none if it cannot be had now."""
        ours, theirs = socket.socketpair()
        # A worker that stands still must not hold up the whole batch.
        limit_send(ours, SEND_TIMEOUT_S)
        with theirs:
            message.fds.insert(0, theirs.fileno())
            if not self._fanout.mailboxes.send(to, message):
                ours.close()
                return []
        row = self._fanout.scoreboard[to]
        return [_Lane(row, to, row.pid, Connection(ours.detach()))]

    def _load(self, to: int) -> int:
        row = self._fanout.scoreboard[to]
        on_its_way = self._fanout.scoreboard.in_transit(to)
        if to in self._lanes:
            on_its_way += self._lanes[to].num_sent
        return int(row.running + row.waiting + on_its_way)

    def _feed(self, hosts: list[int]) -> None:
        """Give out jobs, each to the worker with the least to do that has room."""
        lanes = [self._lanes[to] for to in hosts if to in self._lanes]
        loads = {lane.to: self._load(lane.to) for lane in lanes}
        given: dict[int, list[int]] = {lane.to: [] for lane in lanes}
        share = self._share(lanes)
        has_suspect = self._runs_suspect()
        while self._pending:
            open_lanes = [
                lane
                for lane in lanes
                if self._has_room(lane, loads[lane.to], len(given[lane.to]), share)
            ]
            if not open_lanes:
                break
            if self._tries.is_suspect(self._pending[0]):
                if has_suspect:
                    break
                has_suspect = True
            lane = min(open_lanes, key=lambda lane: loads[lane.to])
            given[lane.to].append(self._pending.popleft())
            loads[lane.to] += 1
        for lane in lanes:
            if given[lane.to]:
                self._send(lane, given[lane.to])

    def _runs_suspect(self) -> bool:
        running = (index for lane in self._lanes.values() for index in lane.running)
        return any(map(self._tries.are_over, running))

    def _share(self, lanes: list[_Lane]) -> int:
        """No worker gets more than its part of what is left, so that all end together."""
        left = len(self._pending) + sum(len(lane.running) for lane in lanes)
        return -(-left // max(1, len(lanes)))

    def _has_room(self, lane: _Lane, load: int, given: int, share: int) -> bool:
        """A free slot that nobody waits for. One job at a time is never held back, so that
        no batch stands still."""
        held = len(lane.running) + given
        return held == 0 or (held < share and load < lane.row.slots and not lane.row.waiting)

    def _send(self, lane: _Lane, indices: list[int]) -> None:
        lane.running.update(indices)
        for index in indices:
            self._tries.start(index)
        for first in range(0, len(indices), JOBS_A_MESSAGE):
            part = indices[first : first + JOBS_A_MESSAGE]
            lane.num_sent += len(part)
            if self._is_first:
                self._clock.start_sequence()  # it counts the time in the queue
            try:
                jobs = [(index, self._jobs[index]) for index in part]
                lane.conn.send(Jobs(jobs, self._clock.began, self._is_first))
            except OSError as error:
                log.warning("row=%d does not take jobs: %s", lane.to, error)
                self._lose(lane)
                return
            self._is_first = False

    # What comes back.

    def _receive(self, lane: _Lane) -> None:
        try:
            while lane.conn.poll():
                num_taken, over = lane.conn.recv()
                lane.num_sent -= num_taken
                for index, outcome in over:
                    self._note(lane, index, outcome)
        except (EOFError, OSError):
            self._lose(lane)

    def _note(self, lane: _Lane, index: int, outcome: Outcome) -> None:
        lane.running.discard(index)
        if is_of_dead_worker(outcome):
            self._dead.add((lane.to, lane.pid))
        if self._tries.may_run_again(index, outcome):
            self._pending.appendleft(index)
        else:
            self._results[index] = Result(outcome, lane.row.slot, self._tries[index])

    def _lose(self, lane: _Lane) -> None:
        """The worker is gone: what it had runs again elsewhere."""
        log.warning("worker %d is gone; %d items run again", lane.row.slot, len(lane.running))
        self._dead.add((lane.to, lane.pid))  # also one that lives and cannot have a lane
        gone = Failed(EngineDead(f"worker {lane.row.slot} ended while it ran this item"))
        for index in sorted(lane.running, reverse=True):
            self._note(lane, index, gone)
        self._close(lane)

    def _close(self, lane: _Lane) -> None:
        _end(lane)
        if lane in self._heirs:
            self._heirs.remove(lane)
        else:
            del self._lanes[lane.to]

    def _give_up_if_nobody(self) -> None:
        """Nothing can run the rest, and nothing has come for as long as a request may wait."""
        if self._lanes:
            self._nobody_since = None
            return
        if (self._fanout.index, os.getpid()) in self._dead:
            tries = {i: self._tries[i] for i in range(len(self._jobs)) if self._died_under(i)}
            self._call.move(dict(list(tries.items())[:MAX_REMEMBERED]))
        now = time.monotonic()
        self._nobody_since = self._nobody_since or now
        if now - self._nobody_since >= self._fanout.max_wait_s:
            error = Unavailable(
                "no worker can run this item now; try again, or ask /readyz",
                retry_after_s=DEFAULT_RETRY_AFTER_S,
                code="not_ready",
            )
            for index in self._pending:
                slot = self._fanout.replica.slot
                self._results[index] = Result(Failed(error), slot, self._tries[index])
            self._pending.clear()


def _end(lane: _Lane) -> None:
    """Tell the other end that nothing went wrong."""
    with contextlib.suppress(OSError):
        lane.conn.send(None)
    lane.conn.close()
