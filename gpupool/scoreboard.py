"""What each worker publishes, in memory shared by the master and all workers.

One anonymous shared mapping, made in the master before the first fork, one slot per worker.
Every field has one writer at a time (the worker that owns the slot; the master while it has
none), and numbers are aligned machine words, so readers need no lock.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Iterator

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


class Slot(ctypes.Structure):
    """One worker's row; read through the properties, written through the methods."""

    _fields_ = (
        ("pid", ctypes.c_uint32),
        ("state_index", ctypes.c_uint32),
        ("running", ctypes.c_uint32),
        ("waiting", ctypes.c_uint32),
        ("failures", ctypes.c_uint32),  # loads that failed in a row
        ("restarts", ctypes.c_uint32),
        ("served", ctypes.c_uint64),
        ("heartbeat", ctypes.c_double),
        ("since", ctypes.c_double),  # when the state began
        ("fraction", ctypes.c_double),  # of the phase, negative where unknown
        ("_phase", ctypes.c_char * 256),
        ("_gpus", ctypes.c_char * 512),
        ("_last_error", ctypes.c_char * 512),
    )

    @property
    def state(self) -> str:
        """One of STATES."""
        return STATES[self.state_index]

    @property
    def is_ready(self) -> bool:
        """Whether the worker can generate, and its main loop lives."""
        return self.state == "ready" and time.monotonic() - self.heartbeat < STALE_S

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
            self._gpus = _cut(" ".join(gpus), 512)
        if last_error is not None:
            self._last_error = _cut(last_error, 512)


class Scoreboard:
    """The slots of one pool; made before the first fork, lives as long as any process has it."""

    def __init__(self, num_slots: int) -> None:
        self._memory = mmap.mmap(-1, ctypes.sizeof(Slot) * num_slots)
        self._slots = (Slot * num_slots).from_buffer(self._memory)

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, slot: int) -> Slot:
        return self._slots[slot]

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    def claim(self, slot: int) -> None:
        """Make the row a new worker's; counters and the last error outlive the worker (master)."""
        row = self._slots[slot]
        row.pid = row.running = row.waiting = 0
        row.describe(phase="", gpus=())
        row.enter("starting")

    def num_ready(self) -> int:
        """Workers that can generate now."""
        return sum(row.is_ready for row in self._slots)


def _cut(text: str, size: int) -> bytes:
    """UTF-8 that fits in `size` bytes, not cut within a character."""
    return text.encode()[: size - 1].decode("utf-8", "ignore").encode()
