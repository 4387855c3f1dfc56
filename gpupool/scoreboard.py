"""What each worker publishes, in memory shared by the master and all workers.

One anonymous shared mapping, made in the master before the first fork. A slot has two rows: while
a reload replaces its worker, the old one and the new one have one each. Every field has one writer
at a time (the worker that owns the row; the master while it has none), and numbers are aligned
machine words, so readers need no lock.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Iterator

from gpupool.balancer import UNKNOWN_RUN_S
from gpupool.key_use import KeyUse
from gpupool.reload_journal import ReloadJournal
from gpupool.totals import PoolTotals
from gpupool.vitals import Vitals

STATES = (
    "free",
    "starting",
    "waiting",
    "loading",
    "ready",
    "draining",
    "failed",
    "quarantined",
)
STALE_S = 5.0  # a worker whose heartbeat is older does not count as ready
TRANSIT_S = 10.0
"""What was handed over and has not arrived by then is lost: its sender was killed between the count
and the message. The receiver would else look busier than it is for ever."""


class Row(ctypes.Structure):
    """One worker's row; read through the properties, written through the methods."""

    _fields_ = (
        ("pid", ctypes.c_uint32),  # 0: nobody's
        ("slot", ctypes.c_uint32),
        ("state_index", ctypes.c_uint32),
        ("slots", ctypes.c_uint32),  # sequences that the engine runs at once
        ("running", ctypes.c_uint32),  # sequences that hold one of them
        ("waiting", ctypes.c_uint32),  # requests in this worker's part of the room
        ("failures", ctypes.c_uint32),  # loads that failed in a row
        ("restarts", ctypes.c_uint32),
        ("is_permanent", ctypes.c_uint32),  # whether trying the failed load again is for nothing
        ("oldest", ctypes.c_double),  # since when the first of the waiting waits
        ("mean_run_s", ctypes.c_double),  # moving average of how long a request runs
        ("heartbeat", ctypes.c_double),
        ("since", ctypes.c_double),  # when the state began
        ("ready_since", ctypes.c_double),  # when this worker became ready; 0 before
        ("not_before", ctypes.c_double),  # when this worker may load; set by the master
        ("fraction", ctypes.c_double),  # of the phase, negative where unknown
        ("estimate_s", ctypes.c_double),  # of the whole load, negative where unknown
        ("last_error_at", ctypes.c_double),
        ("_phase", ctypes.c_char * 256),
        ("_gpus", ctypes.c_char * 1024),  # 16 UUIDs are 656 bytes
        ("_last_error", ctypes.c_char * 512),
    )

    @property
    def state(self) -> str:
        """One of STATES."""
        return STATES[self.state_index]

    @property
    def is_ready(self) -> bool:
        """Whether the worker can generate, and its main loop lives."""
        return (
            self.pid != 0 and self.state == "ready" and time.monotonic() - self.heartbeat < STALE_S
        )

    @property
    def phase(self) -> str:
        """What a loading or waiting worker is at."""
        return bytes(self._phase).decode("utf-8", "replace")

    @property
    def gpus(self) -> list[str]:
        """UUIDs of the leased GPUs."""
        return bytes(self._gpus).decode("utf-8", "replace").split()

    @property
    def last_error(self) -> str:
        """Why the worker, or the one before it on this slot, failed last."""
        return bytes(self._last_error).decode("utf-8", "replace")

    def enter(self, state: str) -> None:
        """Begin a state."""
        self.since = self.heartbeat = time.monotonic()
        if state == "ready":
            self.ready_since = self.since
        self.state_index = STATES.index(state)

    def describe(
        self,
        *,
        phase: str | None = None,
        gpus: tuple[str, ...] | None = None,
        last_error: str | None = None,
    ) -> None:
        """Write the texts given; each is cut to what fits."""
        if phase is not None:
            self._phase = _cut(phase, 256)
        if gpus is not None:
            self._gpus = _cut(" ".join(gpus), 1024)
        if last_error is not None:
            self._last_error = _cut(last_error, 512)
            self.last_error_at = time.monotonic()


class Scoreboard:
    """The rows of one pool; made before the first fork, lives as long as any process has it."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        num_rows = 2 * num_slots
        self.totals = PoolTotals(num_rows)
        self.vitals = Vitals(num_rows)
        self.key_use = KeyUse(num_rows)
        self.reloads = ReloadJournal()
        rows, numbers = Row * num_rows, ctypes.c_uint64 * num_rows * num_rows
        moments = ctypes.c_double * num_rows * num_rows
        at, step = ctypes.sizeof(rows), ctypes.sizeof(numbers)
        self._memory = mmap.mmap(-1, at + 3 * step)
        self._rows = rows.from_buffer(self._memory)
        # All [receiver][sender]: how many requests were handed over, when the last one was, and
        # the number of the last that arrived. Messages between two workers keep their order.
        self._handed_over = numbers.from_buffer(self._memory, at)
        self._handed_over_at = moments.from_buffer(self._memory, at + step)
        self._arrived = numbers.from_buffer(self._memory, at + 2 * step)
        for index, row in enumerate(self._rows):
            row.slot = index % num_slots

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def rows_of(self, slot: int) -> tuple[int, int]:
        """Where a slot's two rows are."""
        return slot, slot + self.num_slots

    def shown_rows(self, slot: int) -> list[int]:
        """The rows that say what a slot is at: its living workers', or what the last one left."""
        first, second = self.rows_of(slot)
        living = [index for index in (first, second) if self._rows[index].pid]
        if living:
            return living
        return [max(first, second, key=lambda index: self._rows[index].since)]

    def claim(self, index: int) -> None:
        """Make the row a new worker's; its counters outlive the worker before (master)."""
        row = self._rows[index]
        row.pid = row.slots = row.running = row.waiting = 0
        row.mean_run_s = UNKNOWN_RUN_S
        row.ready_since = row.not_before = 0.0
        row.is_permanent = 0
        row.estimate_s = -1.0
        self.vitals.clear(index)
        self.key_use.clear(index)
        row.describe(phase="", gpus=())
        row.enter("starting")

    def num_ready(self) -> int:
        """Workers that can generate now."""
        return sum(row.is_ready for row in self._rows)

    def note_handed_over(self, sender: int, receiver: int) -> int:
        """A request is on its way from one row's worker to another's; its number between the
        two, which the receiver is to be told (sender's main thread)."""
        self._handed_over_at[receiver][sender] = time.monotonic()
        self._handed_over[receiver][sender] += 1
        return int(self._handed_over[receiver][sender])

    def take_back(self, sender: int, receiver: int) -> None:
        """What was handed over last could not be sent."""
        self._handed_over[receiver][sender] -= 1

    def note_arrived(self, sender: int, receiver: int, number: int) -> None:
        """A request has arrived, and so has all that was sent before it."""
        arrived = self._arrived[receiver]
        arrived[sender] = max(number, arrived[sender])

    def in_transit(self, receiver: int) -> int:
        """Requests that were handed over to a row and have not arrived yet."""
        if self._handed_over[receiver][:] == self._arrived[receiver][:]:
            return 0  # as nearly always
        return sum(self._num_between(sender, receiver) for sender in range(len(self)))

    def has_on_its_way(self, sender: int) -> bool:
        """Whether something that a row's worker handed over to others has not arrived yet."""
        others = (row for row in range(len(self)) if row != sender)
        return any(self._num_between(sender, receiver) for receiver in others)

    def _num_between(self, sender: int, receiver: int) -> int:
        if time.monotonic() - self._handed_over_at[receiver][sender] >= TRANSIT_S:
            return 0
        count = self._handed_over[receiver][sender] - self._arrived[receiver][sender]
        return max(0, int(count))


def _cut(text: str, size: int) -> bytes:
    """UTF-8 that fits in `size` bytes, not cut within a character."""
    return text.encode()[: size - 1].decode("utf-8", "ignore").encode()
