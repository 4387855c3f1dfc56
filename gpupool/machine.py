"""The machine as a table or as JSON, for `python dispatcher.py` (a process of its own).

Only looks: it takes no lease, so it may run beside pools that work.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gpupool import lockdir, note, occupancy, procfs
from gpupool.gpus import Gpu
from gpupool.layout import Layout
from gpupool.settings import Settings

GIB = 1 << 30
COLUMNS = ("gpu", "name", "memory free/total", "peers", "slice", "holder")


def describe(layout: Layout, settings: Settings) -> dict[str, Any]:
    """Everything the table shows and more, as plain data."""
    inventory = layout.inventory
    slot_of = {gpu.uuid: s.slot for s in layout.slices for gpu in s.gpus}
    gpus = inventory.gpus if inventory else ()
    return {
        "driver": inventory.driver if inventory else None,
        "cuda": inventory.cuda if inventory else None,
        "cpus": sorted(os.sched_getaffinity(0)),
        "lock_dir": str(layout.lock_dir) if layout.lock_dir else None,
        "per_proc_gpus": settings.per_proc_gpus,
        "gpus": [_describe_gpu(gpu, layout, slot_of.get(gpu.uuid)) for gpu in gpus],
        "slices": [
            {"slot": s.slot, "gpus": [gpu.uuid for gpu in s.gpus], "cpus": list(s.cpus)}
            for s in layout.slices
        ],
        "spares": [gpu.uuid for gpu in layout.spares],
    }


def _describe_gpu(gpu: Gpu, layout: Layout, slot: int | None) -> dict[str, Any]:
    assert layout.inventory is not None
    assert layout.lock_dir is not None
    links = {
        other.index: link.label
        for other in layout.inventory.gpus
        if (link := layout.inventory.links.get(frozenset((gpu.uuid, other.uuid)))) is not None
    }
    return {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "parent_uuid": gpu.parent_uuid,
        "name": gpu.name,
        "total_bytes": gpu.total_bytes,
        "free_bytes": gpu.free_bytes,
        "numa_node": gpu.numa_node,
        "peers": links,
        "slice": slot,
        "is_spare": gpu.uuid in {spare.uuid for spare in layout.spares},
        "fault": gpu.fault,
        "holder": _holder(layout.lock_dir, gpu),
        "used_by": [] if occupancy.is_free(gpu) else [procfs.describe(p) for p, _ in gpu.processes],
    }


def _holder(lock_dir: Path, gpu: Gpu) -> str | None:
    """Who holds the lock: by the kernel's list, which cannot be stale, named by the note."""
    uuid = gpu.uuid
    pid = lockdir.holder_pid(lockdir.lock_path(lock_dir, uuid))
    for found in note.read_notes(lock_dir, uuid):
        if found.is_held and pid in (None, found.trace.pid) and lockdir.is_locked(lock_dir, uuid):
            return found.render()
    return procfs.describe(pid) if pid else None


def render(report: dict[str, Any]) -> str:
    """The report as lines of text."""
    if not report["gpus"]:
        return _render_cpus(report)
    rows = [COLUMNS, *(_row(gpu) for gpu in report["gpus"])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = [f"driver {report['driver']}, CUDA {report['cuda']}, leases in {report['lock_dir']}"]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
    num_spares = len(report["spares"])
    lines.append(
        f"{len(report['slices'])} workers at {report['per_proc_gpus']} GPUs each"
        + (f", {num_spares} spare" if num_spares else "")
    )
    return "\n".join(lines)


def _row(gpu: dict[str, Any]) -> tuple[str, ...]:
    near = [f"{index}:{label}" for index, label in gpu["peers"].items() if label != "SYS"]
    place = str(gpu["slice"]) if gpu["slice"] is not None else "-"
    if gpu["is_spare"]:
        place = "spare"
    holder = gpu["holder"] or ("used by " + ", ".join(gpu["used_by"]) if gpu["used_by"] else "-")
    return (
        f"{gpu['index']} {gpu['uuid']}",
        gpu["name"],
        f"{gpu['free_bytes'] / GIB:.1f}/{gpu['total_bytes'] / GIB:.1f} GiB",
        " ".join(near) or "-",
        place,
        f"not usable: {gpu['fault']}" if gpu["fault"] else holder,
    )


def _render_cpus(report: dict[str, Any]) -> str:
    lines = [f"no GPU to use: {len(report['cpus'])} cores, shared out among the workers"]
    for part in report["slices"]:
        cores = ",".join(map(str, part["cpus"]))
        lines.append(f"slice {part['slot']}: cores {cores}")
    return "\n".join(lines)
