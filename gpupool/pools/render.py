"""Pools and their workers as a table for people, and as plain data for programs (any command)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from gpupool.pools.look import View

GIB = 1 << 30
COLUMNS = ("worker", "state", "gpus", "memory", "in flight", "tok/s", "restarts", "")
SHORT_UUID = 12

Rates = dict[tuple[str, int], float]
"""Tokens per second of a pool's slot."""


def render(views: Sequence[View], rates: Rates | None = None) -> str:
    """Each pool with its workers below it."""
    if not views:
        return "no pool runs; start one with gpupool run -f pool.yaml\n"
    return "\n".join(_render_one(view, rates or {}) for view in views)


def _render_one(view: View, rates: Rates) -> str:
    record = view.record
    ready = f" {view.num_ready} of {view.num_slots}" if view.workers else ""
    model = os.path.basename(record.model) if record.model.startswith("/") else record.model
    lines = [f"{record.name}: {view.state}{ready}  {record.url}  {model}"]
    if view.reason:
        lines.append(f"  {view.reason}")
    if view.workers:
        rows = [COLUMNS, *(_row(record.name, worker, rates) for worker in view.workers)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def _row(name: str, worker: dict[str, Any], rates: Rates) -> tuple[str, ...]:
    rate = rates.get((name, worker["slot"]))
    memory = worker["memory_bytes"]
    slots = worker["slots"]
    inflight = _shown(worker["inflight"]) + (f"/{slots}" if slots else "")
    return (
        str(worker["slot"]),
        worker["state"],
        " ".join(uuid[:SHORT_UUID] for uuid in worker["gpus"]) or "cpu",
        "-" if memory is None else f"{memory / GIB:.1f} GiB",
        inflight,
        "-" if rate is None else f"{rate:.0f}",
        _shown(worker["restarts"]),
        progress_of(worker) or _last_error(worker),
    )


def progress_of(worker: dict[str, Any]) -> str:
    """What a worker that is not ready is at."""
    if worker["state"] == "ready":
        return ""
    parts = [worker["phase"]] if worker["phase"] else []
    if worker["fraction"] is not None:
        parts.append(f"{worker['fraction']:.0%}")
    if worker["state"] == "loading":
        of = f" of about {worker['estimate_s']:.0f} s" if worker["estimate_s"] else " s"
        parts.append(f"{worker['for_s']:.0f}{of}")
    if worker["last_error"]:
        parts.append(_last_error(worker))
    return ", ".join(parts)


def _last_error(worker: dict[str, Any]) -> str:
    if not worker["last_error"]:
        return ""
    ago_s = worker.get("last_error_ago_s")
    when = "" if ago_s is None else f" ({ago(ago_s)})"
    return f"last error{when}: {worker['last_error']}"


def ago(seconds: float) -> str:
    """How long since, in one number."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def as_data(views: Iterable[View], rates: Rates | None = None) -> dict[str, Any]:
    """For programs; the workers are as /pool tells them, with their rate."""
    rates = rates or {}
    return {
        "pools": [
            {
                "name": view.record.name,
                "state": view.state,
                "reason": view.reason,
                "pid": view.record.pid,
                "url": view.record.url,
                "model": view.record.model,
                "infer_type": view.infer_type,
                "since": view.record.since,
                "file": view.record.file,
                "ready": view.num_ready,
                "reload": view.reload,
                "workers": [
                    worker | {"tokens_per_s": rates.get((view.record.name, worker["slot"]))}
                    for worker in view.workers
                ],
            }
            for view in views
        ]
    }


def rates_between(before: Iterable[View], after: Iterable[View], seconds: float) -> Rates:
    """Tokens per second of each slot between two looks. Tokens count when their request is over."""
    seen = {
        (view.record.name, worker["slot"]): worker["generated_tokens"]
        for view in before
        for worker in view.workers
    }
    rates = {}
    for view in after:
        for worker in view.workers:
            key, now = (view.record.name, worker["slot"]), worker["generated_tokens"]
            if seconds > 0 and now is not None and seen.get(key) is not None:
                rates[key] = max(0.0, (now - seen[key]) / seconds)
    return rates


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)
