"""What each API key uses, in memory shared by all processes of the pool.

A table per row of the scoreboard, written by the worker that has the row, one thread at a time, and
read by all: what a key uses is the sum over the rows. Keys are known by a word of their digest and
found by open addressing, so that no two share a place. A table holds thousands; a place whose key
has nothing in flight and used nothing within a minute is given to the next key.

Requests in flight die with their worker: rows without a process do not count, and are cleared for
the next one. Tokens were used whoever dies, and are forgotten after their minute.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from gpupool.key_budget import NUM_STEPS, added, index_at, spent

NUM_PLACES = 4096
MAX_PROBES = 64
NUM_SENT = 1024
"""As many on their way from one worker are told from each other; of more the first do not count."""
TRANSIT_S = 10.0
"""A request that was sent to another worker and did not arrive by then is lost: that worker was
killed in the moment in which it took it, or has stood still for so long."""
MAX_LOOKS = 20
LOOK_AGAIN_S = 0.0005
"""So a worker that the system has stopped while it moves a request may go on, and is not waited for
longer than some 10 ms."""

_SIZE = NUM_PLACES + MAX_PROBES  # the last place has as many after it as the first


class Sent(NamedTuple):
    """A request that went from the worker of a row to the mailbox of another."""

    sender: int
    to: int
    at: float  # monotonic


class _Table(ctypes.Structure):
    """Numbers are aligned machine words: a worker killed at any moment leaves whole ones."""

    _fields_ = (
        ("keys", ctypes.c_uint64 * _SIZE),  # 0: the place never had one
        ("in_flight", ctypes.c_uint64 * _SIZE),
        ("minutes", ctypes.c_uint64 * NUM_STEPS * _SIZE),
        # A ring of the requests that were sent to other workers; number n is at n % NUM_SENT.
        ("first_sent", ctypes.c_uint64),
        ("end_sent", ctypes.c_uint64),
        ("sent_keys", ctypes.c_uint64 * NUM_SENT),
        ("sent_to", ctypes.c_uint64 * NUM_SENT),
        ("sent_at", ctypes.c_double * NUM_SENT),  # monotonic
    )


class KeyUse:
    """The tables of one pool; made before the first fork."""

    def __init__(self, num_rows: int) -> None:
        arrived = ctypes.c_double * num_rows * num_rows
        moves = ctypes.c_uint64 * num_rows
        size = ctypes.sizeof(_Table) * num_rows
        arrived_size = ctypes.sizeof(arrived)
        self._memory = mmap.mmap(-1, size + arrived_size + ctypes.sizeof(moves))
        self._tables = (_Table * num_rows).from_buffer(self._memory)
        # [receiver][sender]: when the last request that arrived was sent. Messages between two
        # workers keep their order, so all that were sent before have arrived, too.
        self._arrived = arrived.from_buffer(self._memory, size)
        # Of each row; odd while its worker moves a request from one count to another.
        self._moves = moves.from_buffer(self._memory, size + arrived_size)

    # Read by all.

    def in_flight(self, key: int, rows: Iterable[int], now: float) -> int:
        """Requests of a key that the workers of these rows have, or have on their way. Looks again
        where one moved meanwhile, and would be seen twice or not at all."""
        rows, total = list(rows), 0
        for look in range(MAX_LOOKS):
            if look:
                time.sleep(LOOK_AGAIN_S)
            moves = [self._moves[row] for row in rows]
            total = sum(self._num_of(row, key, now) for row in rows)
            if moves == [self._moves[row] for row in rows] and not any(n % 2 for n in moves):
                break
        return total

    def minute(self, key: int) -> list[int]:
        """The words of the key's minute, for key_budget, of all rows."""
        words: list[int] = []
        for table in self._tables:
            place = _find(table, key)
            if place is not None:
                words += table.minutes[place]
        return words

    # Written by the worker that has the row.

    def begin(self, row: int, key: int, now: float) -> bool:
        """Count a request; False where the table is full."""
        table = self._tables[row]
        place = _place_for(table, key, now)
        if place is None:
            return False
        table.in_flight[place] += 1
        return True

    def end(self, row: int, key: int) -> None:
        """A request that was counted is over."""
        table = self._tables[row]
        place = _find(table, key)
        if place is not None:
            table.in_flight[place] -= 1

    def spend(self, row: int, key: int, tokens: int, now: float) -> None:
        """Count tokens."""
        table = self._tables[row]
        place = _place_for(table, key, now)
        if place is not None:
            minute, step = table.minutes[place], index_at(now)
            minute[step] = added(minute[step], tokens, now)

    # Requests that go to another worker: at any moment in the count of one, or on their way.

    def send(self, row: int, key: int, to: int, now: float) -> None:
        """A request leaves for another row, which is to call `take_over` with this moment."""
        self.forget_arrived(row, now)
        table = self._tables[row]
        at = table.end_sent % NUM_SENT
        table.sent_keys[at], table.sent_to[at], table.sent_at[at] = key, to, now
        with self._moving(row):
            table.end_sent += 1
            self.end(row, key)

    def take_back(self, row: int, key: int, now: float) -> None:
        """What was sent last could not leave."""
        with self._moving(row):
            self._tables[row].end_sent -= 1
            self.begin(row, key, now)

    def take_over(self, row: int, key: int, sent: Sent, now: float) -> bool:
        """Count a request that another worker sent; False where the table is full."""
        arrived = self._arrived[sent.to]
        with self._moving(row):
            arrived[sent.sender] = max(sent.at, arrived[sent.sender])
            return self.begin(row, key, now)

    def forget_arrived(self, row: int, now: float) -> None:
        """Shorten what everybody looks through; to be called now and then."""
        table = self._tables[row]
        for number in range(_first_sent(table), table.end_sent):
            if self._is_in_transit(row, number % NUM_SENT, now):
                break
            table.first_sent = number + 1

    # Written by the master, while the row has no worker.

    def clear(self, row: int) -> None:
        """Forget what the row's last worker had in flight."""
        table = self._tables[row]
        ctypes.memset(table.in_flight, 0, ctypes.sizeof(table.in_flight))
        table.first_sent = table.end_sent
        self._moves[row] += self._moves[row] % 2

    @contextlib.contextmanager
    def _moving(self, row: int) -> Iterator[None]:
        self._moves[row] += 1
        try:
            yield
        finally:
            self._moves[row] += 1

    def _num_of(self, row: int, key: int, now: float) -> int:
        table = self._tables[row]
        place = _find(table, key)
        here = table.in_flight[place] if place is not None else 0
        return int(here) + self._num_in_transit(row, key, now)

    def _num_in_transit(self, row: int, key: int, now: float) -> int:
        table = self._tables[row]
        places = (number % NUM_SENT for number in range(_first_sent(table), table.end_sent))
        return sum(
            table.sent_keys[at] == key and self._is_in_transit(row, at, now) for at in places
        )

    def _is_in_transit(self, row: int, at: int, now: float) -> bool:
        table = self._tables[row]
        sent_at = table.sent_at[at]
        has_arrived = self._arrived[table.sent_to[at]][row] >= sent_at
        return not has_arrived and now - sent_at < TRANSIT_S


def _first_sent(table: _Table) -> int:
    return max(int(table.first_sent), int(table.end_sent) - NUM_SENT)


def _find(table: _Table, key: int) -> int | None:
    """Where a key is."""
    first, keys = key % NUM_PLACES, table.keys
    for place in range(first, first + MAX_PROBES):
        found = keys[place]
        if found == key:
            return place
        if not found:
            return None
    return None


def _place_for(table: _Table, key: int, now: float) -> int | None:
    """Where a key is, or is from now on; None: all places that it may have are in use."""
    if (place := _find(table, key)) is not None:
        return place
    first = key % NUM_PLACES
    for place in range(first, first + MAX_PROBES):
        if not table.keys[place] or _is_idle(table, place, now):
            # In this order: nobody must find another key's numbers under this one.
            ctypes.memset(table.minutes[place], 0, ctypes.sizeof(table.minutes[place]))
            table.keys[place] = key
            return place
    return None


def _is_idle(table: _Table, place: int, now: float) -> bool:
    return not table.in_flight[place] and not spent(table.minutes[place], now)
