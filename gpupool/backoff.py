"""When a slot whose worker ended gets its next one (pure policy; used by the master).

Every slot has its own record, so one that fails never holds up the others. Times are
time.monotonic() values, given by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass

DELAYS_S = (1, 5, 30, 120)
HOPELESS_AFTER = 4  # failed loads in a row
QUICK_S = 60.0  # a worker that dies so soon after it became ready may do so again
NUM_PARDONED = 2  # quick deaths in a row that are answered by a new worker at once


@dataclass(slots=True)
class Record:
    """What happened on one slot lately."""

    failures: int = 0  # loads that failed in a row
    quick_deaths: int = 0  # in a row
    not_before: float = 0.0
    is_permanent: bool = False  # the last failure was of a kind that will come again
    may_answer: bool = False  # the last worker got far enough to answer probes

    @property
    def is_hopeless(self) -> bool:
        """Whether nothing speaks for another try."""
        return self.failures > 0 and (self.is_permanent or self.failures >= HOPELESS_AFTER)


class Backoff:
    """The records of one pool's slots."""

    def __init__(self, num_slots: int) -> None:
        self._records = [Record() for _ in range(num_slots)]
        self._was_ready = False

    def __getitem__(self, slot: int) -> Record:
        return self._records[slot]

    @property
    def is_hopeless(self) -> bool:
        """Whether no slot of the pool can ever work. A pool that once served keeps trying: what
        worked may work again."""
        return not self._was_ready and all(record.is_hopeless for record in self._records)

    def first_to_answer(self) -> int | None:
        """The slot that gets its worker before its back-off is over, if all slots wait."""
        slots = [slot for slot, record in enumerate(self._records) if record.may_answer]
        return min(slots, key=lambda slot: self._records[slot].not_before, default=None)

    def note_ready(self, slot: int) -> None:
        """The slot's worker became ready."""
        self._was_ready = True
        record = self._records[slot]
        record.failures, record.is_permanent, record.not_before = 0, False, 0.0

    def note_failure(
        self, slot: int, now: float, *, is_permanent: bool = False, may_answer: bool = False
    ) -> float:
        """A worker ended before it was ready; returns the delay of the next."""
        record = self._records[slot]
        record.failures += 1
        record.is_permanent, record.may_answer = is_permanent, may_answer
        return _delay(record, now, record.failures)

    def note_death(self, slot: int, now: float, ready_s: float) -> float:
        """A worker that was ready for `ready_s` died; returns the delay of the next."""
        record = self._records[slot]
        record.quick_deaths = record.quick_deaths + 1 if ready_s < QUICK_S else 0
        record.may_answer = True
        return _delay(record, now, record.quick_deaths - NUM_PARDONED)

    def forgive(self) -> None:
        """Something was changed that may help: try every slot at once, and count anew."""
        self._records = [Record() for _ in self._records]


def _delay(record: Record, now: float, count: int) -> float:
    delay_s = DELAYS_S[min(count, len(DELAYS_S)) - 1] if count > 0 else 0
    record.not_before = now + delay_s
    return delay_s
