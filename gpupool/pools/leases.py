"""Who holds which GPU, as the locks and the notes beside them tell (`leases`).

Only looks: whether a GPU is held is asked of its lock, which ends with its holder; a note only
says who that is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpupool import lockdir, note, procfs
from gpupool.errors import ConfigError
from gpupool.gpus import Gpu, read_inventory
from gpupool.note import Note

FREE = "free"


@dataclass(frozen=True, slots=True)
class Lease:
    """One GPU and who holds it."""

    gpu: str  # its UUID
    index: int | None
    is_held: bool
    pool: str = ""  # its name, if gpupool run of this user started it
    worker: int | None = None
    pid: int | None = None
    user: str = ""
    model: str = ""
    since: str = ""
    holder: str = ""  # for people, where there is no note


def read_leases(lock_dir: Path, gpus: Sequence[Gpu], pools: Mapping[str, str]) -> list[Lease]:
    """Of the machine's GPUs, and of any other that was ever leased. `pools` are names by what
    notes call them."""
    index_of = {lockdir.file_name(gpu.uuid): gpu.index for gpu in gpus}
    names = {path.stem for path in lock_dir.glob("*.lock")} - {"allocator"}
    found = [_lease(lock_dir, name, index_of.get(name), pools) for name in {*index_of, *names}]
    return sorted(found, key=lambda lease: (lease.index is None, lease.index, lease.gpu))


def _lease(lock_dir: Path, name: str, index: int | None, pools: Mapping[str, str]) -> Lease:
    path = lockdir.lock_path(lock_dir, name)
    if not path.exists() or not lockdir.is_locked(lock_dir, name):
        return Lease(name, index, is_held=False)
    holder = next((n for n in note.read_notes(lock_dir, name) if n.is_held), None)
    if holder is None:
        pid = lockdir.holder_pid(path)
        who = procfs.describe(pid) if pid else "a process that is not visible from here"
        return Lease(name, index, is_held=True, pid=pid, holder=who)
    return _told(name, index, holder, pools)


def _told(name: str, index: int | None, holder: Note, pools: Mapping[str, str]) -> Lease:
    return Lease(
        name,
        index,
        is_held=True,
        pool=pools.get(holder.pool, ""),
        worker=holder.slot,
        pid=holder.trace.pid,
        user=holder.user,
        model=holder.model,
        since=holder.since,
    )


def visible_gpus() -> tuple[Gpu, ...]:
    """The machine's GPUs; none where the driver does not tell."""
    try:
        inventory = read_inventory()
    except ConfigError:
        return ()
    return inventory.gpus if inventory else ()


def render(leases: Iterable[Lease], lock_dir: Path) -> str:
    """A line for each GPU."""
    rows = [_row(lease) for lease in leases]
    if not rows:
        return f"no GPU here, and none was ever leased (locks in {lock_dir})\n"
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    lines = [f"leases in {lock_dir}"]
    lines += [f"{row[0].ljust(widths[0])}  {row[1].ljust(widths[1])}  {row[2]}" for row in rows]
    return "\n".join(lines) + "\n"


def _row(lease: Lease) -> tuple[str, str, str]:
    gpu = "-" if lease.index is None else str(lease.index)
    if not lease.is_held:
        return gpu, lease.gpu, FREE
    if lease.holder:
        return gpu, lease.gpu, lease.holder
    pool = f"pool {lease.pool}, " if lease.pool else ""
    who = f"pid {lease.pid}, user {lease.user}, model {lease.model}, since {lease.since}"
    return gpu, lease.gpu, f"{pool}worker {lease.worker}, {who}"


def as_data(leases: Iterable[Lease], lock_dir: Path) -> dict[str, Any]:
    """For programs."""
    return {"lock_dir": str(lock_dir), "leases": [asdict(lease) for lease in leases]}
