"""Ends pools: lets them finish what they have, and touches nothing else (`stop`, `run`).

Only a pool's master is signalled, through a descriptor that stands for that very process. It
ends its workers, and every worker's guardian what is left of an engine. Should the master not end
in its time it is killed, and the guardians do the rest.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace

from gpupool import procfs, remains
from gpupool.notify import TEARDOWN_S
from gpupool.pools.look import look
from gpupool.pools.record import Process, Record, opened
from gpupool.procfs import Process as Seen

TELL_EVERY_S = 5.0
LOOK_EVERY_S = 0.1
GUARDIANS_S = 10.0

Tell = Callable[[str], None]


def stop(record: Record, tell: Tell, timeout_s: float | None = None) -> bool:
    """Drain and end one pool; whether nothing of it is left. After `timeout_s`, by default the
    pool's own grace period and its engines' end, it is killed."""
    with opened(record) as process:
        if process is None:
            return _forget(record, tell)
        grace_s = record.settings().graceful_timeout_s
        limit_s = grace_s + TEARDOWN_S if timeout_s is None else timeout_s
        in_flight = sum(worker["inflight"] or 0 for worker in look(record).workers)
        replace(record, is_stopping=True).write()
        seen = members(record)
        process.send(signal.SIGTERM)
        if in_flight:
            tell(f"{record.name}: waits for {in_flight} request(s) in flight, at most {grace_s} s")
        if not _await(process, record, limit_s, tell):
            tell(f"{record.name}: did not end within {limit_s:.0f} s and is killed")
            seen |= members(record)
            process.send(signal.SIGKILL)
            process.wait(GUARDIANS_S)
    left = _await_end(seen)
    if left:
        return _complain(record, left, tell)
    record.remove()
    tell(f"{record.name}: stopped")
    return True


def _forget(record: Record, tell: Tell) -> bool:
    """A pool that had ended; its engines too, where no guardian was left to end them."""
    engines = [found for found in procfs.list_processes() if record.is_engine(found.pid)]
    remains.kill(engines)
    if left := _await_end({(engine.pid, engine.start_ticks) for engine in engines}):
        return _complain(record, left, tell)
    record.remove()
    ended = f", and {len(engines)} process(es) of its engines are ended" if engines else ""
    tell(f"{record.name}: had ended already{ended}")
    return True


def _complain(record: Record, left: list[int], tell: Tell) -> bool:
    tell(f"{record.name}: the kernel does not end {', '.join(map(procfs.describe, left))}")
    return False


def members(record: Record) -> set[tuple[int, int]]:
    """Every process of the pool, by pid and start: its session's."""
    found = set()
    for process in procfs.list_processes():
        if process.is_running and (process.pid == record.pid or _session(process) == record.pid):
            found.add((process.pid, process.start_ticks))
    return found


def _session(process: Seen) -> int:
    try:
        return os.getsid(process.pid)
    except OSError:
        return 0


def _await(process: Process, record: Record, timeout_s: float, tell: Tell) -> bool:
    began = time.monotonic()
    while (left_s := began + timeout_s - time.monotonic()) > 0:
        if process.wait(min(TELL_EVERY_S, left_s)):
            return True
        waited_s = time.monotonic() - began
        tell(
            f"{record.name}: {len(members(record))} process(es) still finish requests or end "
            f"their engine ({waited_s:.0f} s)"
        )
    return process.wait(0)


def _await_end(seen: set[tuple[int, int]]) -> list[int]:
    """Those that still run after the guardians' time."""
    deadline = time.monotonic() + GUARDIANS_S
    while True:
        left = [pid for pid, start in seen if _is_that(pid, start)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(LOOK_EVERY_S)


def _is_that(pid: int, start: int) -> bool:
    process = procfs.read_process(pid)
    return process is not None and process.start_ticks == start and process.is_running
