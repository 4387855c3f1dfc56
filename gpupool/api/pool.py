"""GET /pool and GET /: the workers, the engine and the routes (worker process)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from flask import Blueprint, Response, current_app, jsonify

from gpupool import __version__, capabilities
from gpupool.api.openai.routes import MODELS, find
from gpupool.replica import Replica
from gpupool.scoreboard import Scoreboard
from gpupool.standing import Standing
from gpupool.totals import Totals, served

blueprint = Blueprint("pool", __name__)

UNKNOWN: dict[str, Any] = dict.fromkeys(
    (
        "restarts",
        "last_error_ago_s",
        "memory_bytes",
        "gpu_use",
    )
)


@blueprint.get("/")
def index() -> Response:
    """What is served here, and where. A browser is shown the page instead (`api.page`)."""
    replica: Replica = current_app.extensions["gpupool"]
    routes = {
        str(rule): sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
        for rule in current_app.url_map.iter_rules()
        if rule.endpoint != "page.file"
    }
    if replica.front is not None:
        routes[MODELS] = ["GET"]
        routes |= {path: ["POST"] for path in sorted(replica.front.able.fields) if find(path)}
    answer = jsonify(
        name="gpupool",
        version=__version__,
        model=replica.settings.model_name,
        infer_type=replica.settings.infer_type,
        routes=routes,
    )
    answer.vary.add("Accept")
    return answer


@blueprint.get("/pool")
def pool() -> Response:
    """Every worker and GPU, and what the engine can do."""
    replica: Replica = current_app.extensions["gpupool"]
    workers = describe_workers()
    return jsonify(
        model=replica.settings.model_name,
        infer_type=replica.settings.infer_type,
        master_pid=_master_pid(),
        workers=workers,
        gpus=_describe_gpus(workers),
        capabilities=_capabilities(replica),
        reload=_reload(),
    )


def _describe_gpus(workers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All GPUs that the pool may use or was kept from, also those that no worker has."""
    standings: Callable[[], list[Standing]] = current_app.extensions.get(
        "gpupool.standings", list[Any]
    )
    held_by = {uuid: worker["slot"] for worker in workers for uuid in worker["gpus"]}
    use_of = {
        uuid: use
        for worker in workers
        for uuid, use in zip(worker["gpus"], worker["gpu_use"] or (), strict=False)
    }
    return [_describe_gpu(one, held_by.get(one.uuid), use_of.get(one.uuid)) for one in standings()]


def _describe_gpu(gpu: Standing, slot: int | None, use: dict[str, Any] | None) -> dict[str, Any]:
    """`use` is what its worker measures of it."""
    state = "spare" if gpu.is_spare else "free"
    if gpu.fault or gpu.quarantine:
        state = "faulty" if gpu.fault else "quarantined"
    elif slot is not None:
        state = "leased"
    return {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "state": state,
        "worker": slot,
        "reason": gpu.fault or gpu.quarantine,
        "use": asdict(gpu.use) if slot is None and gpu.use is not None else use,
    }


def _master_pid() -> int | None:
    """Whose worker answers; nobody's where the host has no master."""
    return os.getppid() if "gpupool.scoreboard" in current_app.extensions else None


def _reload() -> dict[str, Any] | None:
    """How many reloads were asked for, the last that is over, and why it was given up."""
    scoreboard: Scoreboard | None = current_app.extensions.get("gpupool.scoreboard")
    return None if scoreboard is None else scoreboard.reloads.describe()


def _capabilities(replica: Replica) -> dict[str, bool | None]:
    """The engine's column of the capability table; null while an engine that is not in it has
    not been loaded."""
    able = capabilities.ENGINES.get(replica.settings.infer_type)
    if replica.engine is not None:
        able = replica.engine.capabilities
    return {feature: None if able is None else feature in able for feature in capabilities.FEATURES}


def describe_workers() -> list[dict[str, Any]]:
    """What each worker is at, by slot; two for a slot whose worker is being replaced. Numbers
    that nobody knows are null."""
    scoreboard: Scoreboard | None = current_app.extensions.get("gpupool.scoreboard")
    if scoreboard is None:
        return [_describe_alone(current_app.extensions["gpupool"])]
    shown = map(scoreboard.shown_rows, range(scoreboard.num_slots))
    return [_describe(scoreboard, rows, index) for rows in shown for index in rows]


def _describe(scoreboard: Scoreboard, shown: list[int], index: int) -> dict[str, Any]:
    row = scoreboard[index]
    # What ended with the slot's earlier workers counts for the one that is left.
    rows = scoreboard.rows_of(row.slot) if len(shown) == 1 else (index,)
    totals = [scoreboard.totals[i] for i in rows]
    use = scoreboard.vitals.read(index)
    loaded = row.state in ("ready", "draining")
    return {
        "slot": row.slot,
        "pid": row.pid or None,
        "state": row.state,
        "phase": row.phase,
        "fraction": row.fraction if row.fraction >= 0 else None,
        "for_s": round(time.monotonic() - row.since, 1),
        "estimate_s": row.estimate_s if row.estimate_s >= 0 else None,
        "gpus": row.gpus,
        "slots": row.slots if loaded and row.slots else None,
        "running": row.running,
        "waiting": row.waiting,
        "inflight": row.running + row.waiting,
        "served": served(totals),
        "generated_tokens": sum(one.generated_tokens for one in totals),
        "seen_tokens": _seen_tokens(totals),
        "restarts": sum(scoreboard[i].restarts for i in rows),
        "last_error": row.last_error,
        "last_error_ago_s": _ago(row.last_error_at) if row.last_error else None,
        "memory_bytes": use.memory_bytes,
        "gpu_use": [asdict(gpu) for gpu in use.gpus] or None,
    }


def _ago(moment: float) -> float:
    return round(time.monotonic() - moment, 1)


def _seen_tokens(totals: Iterable[Totals]) -> int:
    """Tokens that were counted as they came, long before their answer is whole: a speed that is
    made of whole answers stands still and jumps. The histograms have them, one value each."""
    histograms = ("time_to_first_token_seconds", "inter_token_latency_seconds")
    return sum(sum(one.observations(name).counts) for one in totals for name in histograms)


def _describe_alone(replica: Replica) -> dict[str, Any]:
    """The one worker of a host without a scoreboard. What waits, waits before it."""
    totals: Totals = current_app.extensions["gpupool.totals"]
    engine = replica.engine
    running = 0 if engine is None else engine.num_inflight()
    return UNKNOWN | {
        "pid": os.getpid(),
        "slots": None if engine is None else engine.model.slots,
        "running": running,
        "waiting": 0,
        "inflight": running,
        "served": served([totals]),
        "generated_tokens": totals.generated_tokens,
        "seen_tokens": _seen_tokens([totals]),
        "slot": replica.slot,
        "state": replica.state,
        "phase": replica.phase,
        "fraction": replica.fraction,
        "for_s": round(time.monotonic() - replica.since, 1),
        "estimate_s": replica.estimate_s,
        "gpus": [gpu.uuid for gpu in replica.gpus],
        "last_error": "" if replica.error is None else str(replica.error),
    }
