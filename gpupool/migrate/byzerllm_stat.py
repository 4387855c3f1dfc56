"""What `byzerllm stat` prints, made of a pool's account of itself (pure; the import command)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEYS = {
    "total_workers": "the number of workers",
    "busy_workers": "those that have requests",
    "idle_workers": "those that have none",
    "load_balance_strategy": "always `queue`: one for all workers",
    "total_requests": "requests that each worker has answered",
    "state": "requests that each worker could take now",
    "worker_max_concurrency": "requests that a worker takes at once",
    "workers_last_work_time": "0.0s for a worker that works; null else, as nobody keeps it",
}
"""Each of its keys, and what stands there."""


def as_stat(pool: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of GET /pool by byzerllm's keys."""
    workers = pool["workers"]
    busy = [worker for worker in workers if worker["inflight"]]
    slots = [worker["slots"] or 0 for worker in workers]
    return {
        "total_workers": len(workers),
        "busy_workers": len(busy),
        "idle_workers": len(workers) - len(busy),
        "load_balance_strategy": "queue",
        "total_requests": [worker["served"] for worker in workers],
        "state": [
            max(0, free - (worker["running"] or 0))
            for free, worker in zip(slots, workers, strict=True)
        ],
        "worker_max_concurrency": max(slots, default=0),
        "workers_last_work_time": ["0.0s" if worker["running"] else None for worker in workers],
    }
