"""GPUDispatcher: cuts the machine into slices and leases each worker its own.

Planned in the master before any fork; `acquire` runs in the workers. `python dispatcher.py`
prints the machine. Imports neither torch nor any engine, and opens NVML only within calls.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpupool import extras

if __name__ == "__main__":
    extras.require("gpupool.machine", "dispatcher")

from gpupool import lockdir, machine, note, occupancy, procfs, remains
from gpupool.errors import ConfigError, GpupoolError
from gpupool.gpus import Gpu, Links, read_gpus
from gpupool.holdings import Holdings
from gpupool.layout import Layout, make_layout
from gpupool.lease import PORTS_PER_LEASE, HeldNote, Lease
from gpupool.lockdir import Busy, Locks
from gpupool.note import Note, Trace
from gpupool.partition import Slice, best_set, near_cpus
from gpupool.setting_types import HOSTED
from gpupool.settings import Settings, read_settings

__all__ = ["GPUDispatcher", "Grant", "Lease"]

log = logging.getLogger(__name__)

PREDECESSOR_WAIT_S = 10.0  # a slot's dead worker keeps its GPUs this long before others are tried
GPU_PORTS = range(20_000, 24_096)
CPU_PORTS = range(24_096, 32_288)  # both below the ports that Linux gives to clients


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to one try: a lease, or the reason why there is none."""

    lease: Lease | None
    reason: str = ""  # with a lease: why it is not on the slot's own slice
    is_quarantined: bool = False  # the slice's GPUs are, and no others are free


class GPUDispatcher:
    """The slices of one pool and the leases on them.

    Made once in the master, inherited by its workers through fork. Two pools on one machine
    know nothing of each other but the locks.
    """

    def __init__(self, layout: Layout, settings: Settings) -> None:
        self.layout = layout
        self.slices = layout.slices
        self.spares = layout.spares
        self._settings = settings
        self._pool = f"{os.getpid()}-{procfs.start_ticks(os.getpid())}"
        self._gpus = (*(gpu for s in layout.slices for gpu in s.gpus), *layout.spares)
        self._home = {gpu.uuid: s.slot for s in layout.slices for gpu in s.gpus}
        self._holdings = Holdings(len(layout.slices), len(self._gpus))
        self._predecessor_seen: dict[int, float] = {}

    @classmethod
    def for_settings(cls, settings: Settings) -> GPUDispatcher:
        """Take the inventory and cut it. Blocks on the driver; ConfigError if it cannot be done."""
        return cls(make_layout(settings), settings)

    def with_settings(self, settings: Settings) -> GPUDispatcher:
        """The same pool's dispatcher for workers with other settings: all that is shared stays
        shared."""
        twin = copy.copy(self)
        twin._settings = settings
        return twin

    def acquire(self, slot: int) -> Grant:
        """Try once to lease GPUs for the slot: its own slice, else any others that are free.

        Never raises, since an exception in post_fork halts the whole server, and never waits
        for a lock; it takes as long as NVML takes to look at the GPUs. GPUs of another slot
        are taken only if that slot cannot use them.
        """
        try:
            return self._acquire(self.slices[slot])
        except GpupoolError as error:
            return Grant(None, str(error))
        except Exception as error:
            log.exception("lease failed slot=%s", slot)
            return Grant(None, f"leasing slice {slot} failed: {error!r}")

    def quarantine(self, uuid: str, reason: str) -> None:
        """Give this GPU to no worker any more; any process of the pool may call it."""
        for position, gpu in enumerate(self._gpus):
            if uuid in (gpu.uuid, gpu.parent_uuid):
                self._holdings.quarantine(position, reason)

    def quarantine_reason(self, uuid: str) -> str | None:
        """Why the GPU is quarantined, or None."""
        for position, gpu in enumerate(self._gpus):
            if gpu.uuid == uuid:
                return self._holdings.quarantine_reason(position)
        return None

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """All GPUs that a worker of this pool may get, the spare ones too."""
        return self._gpus

    def holder(self, uuid: str) -> Note | None:
        """The note of the process that holds a GPU, of whatever pool; None where none is known."""
        notes = note.read_notes(self.layout.lock_dir, uuid) if self.layout.lock_dir else []
        return next((found for found in notes if found.is_held), None)

    def _acquire(self, home: Slice) -> Grant:
        if self.layout.lock_dir is None:
            return Grant(self._new_lease(home, Locks((), (), os.getpid())))
        grant = self._try_home(home, self.layout.lock_dir)
        if grant.lease or self._is_ending(home):
            return grant
        # The guardian of the slot's last worker may have let go between the two looks.
        grant = self._try_home(home, self.layout.lock_dir)
        if grant.lease:
            return grant
        locks, chosen = self._lock_substitutes(home, self.layout.lock_dir)
        if not chosen:
            return grant
        found = self._grant(Slice(home.slot, chosen, near_cpus(chosen)), locks)
        return replace(found, reason=grant.reason) if found.lease else found

    def _try_home(self, home: Slice, lock_dir: Path) -> Grant:
        for gpu in home.gpus:
            if (reason := self.quarantine_reason(gpu.uuid)) is not None:
                told = f"GPU {gpu.index} ({gpu.uuid}) is quarantined: {reason}"
                return Grant(None, told, is_quarantined=True)
        try:
            with lockdir.allocator(lock_dir):
                locks = lockdir.try_lock(lockdir.lock_modes(lock_dir, home.gpus))
        except Busy as busy:
            return Grant(None, self._explain_busy(home.gpus, busy))
        except OSError as error:
            return Grant(None, f"lock file {error.filename!r}: {error.strerror}")
        return self._grant(home, locks)

    def _grant(self, gpu_slice: Slice, locks: Locks) -> Grant:
        """A lease on GPUs whose locks are held, unless somebody uses them nevertheless."""
        try:
            assert self.layout.lock_dir is not None
            found = {g.uuid: note.read_notes(self.layout.lock_dir, g.uuid) for g in gpu_slice.gpus}
            before = remains.dead_traces(n for notes in found.values() for n in notes)
            now = read_gpus(gpu_slice.gpus)
            for gpu in now.values():
                if reason := _trouble(gpu, found[gpu.uuid], before):
                    locks.release()
                    return Grant(None, reason)
            lease = self._new_lease(gpu_slice, locks, before)
            self._write_notes(lease, self.layout.lock_dir)
            self._holdings.publish(gpu_slice.slot, self._positions(gpu_slice.gpus))
            lease.on_release = lambda: self._holdings.clear(gpu_slice.slot)
            return Grant(lease)
        except BaseException:
            locks.release()
            raise

    def _new_lease(self, gpu_slice: Slice, locks: Locks, before: tuple[Trace, ...] = ()) -> Lease:
        return Lease(
            slice=gpu_slice,
            token=secrets.token_hex(16),
            port_base=self._port_base(gpu_slice),
            locks=locks,
            before=before,
            hides_gpus=self._settings.infer_type == HOSTED,
        )

    def _write_notes(self, lease: Lease, lock_dir: Path) -> None:
        trace, slot = note.new_trace(lease.token), lease.slice.slot
        written = note.new_note(trace, self._settings.model_name, self._pool, slot, lease.before)
        for gpu in lease.slice.gpus:
            if (fd := note.open_note(lock_dir, gpu.uuid)) is not None:
                note.write_note(fd, written)
                lease.notes.append(HeldNote(fd, written))

    def _is_ending(self, home: Slice) -> bool:
        """Whether the slice is only held by what is left of the slot's own last worker.

        Its guardian lets go within moments; a move to a spare GPU would be for nothing.
        """
        assert self.layout.lock_dir is not None
        for gpu in home.gpus:
            last = next(iter(note.read_notes(self.layout.lock_dir, gpu.uuid)), None)
            if last is None or (last.pool, last.slot) != (self._pool, home.slot):
                continue
            if last.ended_s is None and lockdir.is_locked(self.layout.lock_dir, gpu.uuid):
                seen = self._predecessor_seen.setdefault(last.trace.pid, time.monotonic())
                return time.monotonic() - seen < PREDECESSOR_WAIT_S
        return False

    def _lock_substitutes(self, home: Slice, lock_dir: Path) -> tuple[Locks, tuple[Gpu, ...]]:
        """The best set of other GPUs that are free, locked; or no GPUs."""
        now = read_gpus(self._gpus)
        lost = {uuid for uuid, gpu in now.items() if gpu.fault or not occupancy.is_free(gpu)}
        lost |= {gpu.uuid for gpu in self._gpus if self.quarantine_reason(gpu.uuid)}
        locked: dict[str, Locks] = {}
        chosen: tuple[Gpu, ...] = ()
        try:
            with lockdir.allocator(lock_dir):
                for gpu in self._gpus:
                    if gpu.uuid in lost:
                        continue
                    try:
                        locked[gpu.uuid] = lockdir.try_lock(lockdir.lock_modes(lock_dir, [gpu]))
                    except (Busy, OSError):
                        if self._is_held_outside(gpu):
                            lost.add(gpu.uuid)
                free = [g for g in self._gpus if g.uuid in locked and self._may_take(g, home, lost)]
                chosen = best_set(free, self._links, len(home.gpus)) or ()
        finally:
            kept = {gpu.uuid for gpu in chosen}
            for uuid, locks in locked.items():
                if uuid not in kept:
                    locks.release()
        return Locks.joined([locked[gpu.uuid] for gpu in chosen]), chosen

    def _may_take(self, gpu: Gpu, home: Slice, lost: set[str]) -> bool:
        """Spare GPUs and our own; another slot's only if it has others or cannot use them."""
        owner = self._home.get(gpu.uuid)
        if owner is None or owner == home.slot or self._holdings.held_by(owner) is not None:
            return True
        return any(other.uuid in lost for other in self.slices[owner].gpus)

    def _is_held_outside(self, gpu: Gpu) -> bool:
        """Whether somebody else than this pool holds a locked GPU, as far as the notes tell."""
        assert self.layout.lock_dir is not None
        notes = note.read_notes(self.layout.lock_dir, gpu.uuid)
        return bool(notes) and notes[0].pool != self._pool

    def _explain_busy(self, gpus: tuple[Gpu, ...], busy: Busy) -> str:
        for gpu in gpus:
            who = f"GPU {gpu.index} ({gpu.uuid})"
            if busy.path.stem == lockdir.file_name(gpu.uuid):
                if (holder := self.holder(gpu.uuid)) is not None:
                    return f"{who} is held by {holder.render()}"
                break
        pid = lockdir.holder_pid(busy.path)
        by = procfs.describe(pid) if pid else "a process that is not visible from here"
        return f"{who} is held by {by} (lock file {str(busy.path)!r})"

    @property
    def _links(self) -> Links:
        return self.layout.inventory.links if self.layout.inventory else {}

    def _positions(self, gpus: tuple[Gpu, ...]) -> list[int]:
        chosen = {gpu.uuid for gpu in gpus}
        return [i for i, gpu in enumerate(self._gpus) if gpu.uuid in chosen]

    def _port_base(self, gpu_slice: Slice) -> int:
        """The first of PORTS_PER_LEASE ports that no other lease of the machine has: GPUs are
        leased to one, so their place on the machine says which. Pools without GPUs are told
        apart by their own port."""
        if not gpu_slice.gpus or self.layout.inventory is None:
            ports, place = CPU_PORTS, self._settings.port * 16 + gpu_slice.slot
        else:
            uuids = {gpu.uuid for gpu in gpu_slice.gpus}
            all_gpus = enumerate(self.layout.inventory.gpus)
            ports, place = GPU_PORTS, min(i for i, gpu in all_gpus if gpu.uuid in uuids)
        return ports[place * PORTS_PER_LEASE % len(ports)]


def _trouble(gpu: Gpu, notes: list[Note], before: tuple[Trace, ...]) -> str | None:
    """Why a GPU that is locked must still not be used. Memory that the lease before ours has
    not given back yet is no reason: the wait for it comes before the engine loads."""
    if gpu.fault is not None:
        return f"GPU {gpu.index} ({gpu.uuid}): {gpu.fault}"
    if occupancy.is_free(gpu):
        return None
    left = {process.pid for process in remains.survivors(before)}
    if notes and notes[0].may_be_freeing and not occupancy.foreign_pids(gpu, ignored_pids=left):
        return None
    return occupancy.explain(gpu)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what a pool with these settings would do with the machine; the exit status."""
    options = vars(_parser().parse_args(arguments))
    as_json = options.pop("json")
    try:
        settings = read_settings(**{k: v for k, v in options.items() if v is not None})
        report = machine.describe(make_layout(settings), settings)
    except ConfigError as error:
        print(f"dispatcher: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report, indent=2) if as_json else machine.render(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Show the machine's GPUs, the slices a pool would cut, and who holds them. "
        "What is not given here comes from the environment, as for start_gunicorn.sh."
    )
    for name, kind, text in (
        ("per_proc_gpus", int, "GPUs per worker"),
        ("cuda_visible_devices", str, "GPUs to use: indices, GPU- UUIDs or MIG- ids"),
        ("workers", int, "workers to start"),
        ("lock_dir", Path, "directory of the GPU leases"),
    ):
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        parser.add_argument(*spellings, dest=name, type=kind, help=text)
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
