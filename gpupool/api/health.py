"""GET /livez, /readyz, /health and /pool: what the pool is at (worker process)."""

from __future__ import annotations

import time
from typing import Any

from flask import Blueprint, Response, current_app, jsonify

from gpupool import capabilities
from gpupool.replica import RETRY_AFTER_S, Replica
from gpupool.scoreboard import Row, Scoreboard

blueprint = Blueprint("health", __name__)


@blueprint.get("/livez")
def livez() -> Response:
    """This process answers."""
    return jsonify(status="live")


@blueprint.get("/readyz")
@blueprint.get("/health", endpoint="health")
def readyz() -> Response:
    """200 when at least one worker of the pool can generate, else 503 with what each is at."""
    workers = _workers()
    num_ready = sum(worker["state"] == "ready" for worker in workers)
    states = [
        {key: worker[key] for key in ("slot", "state", "phase", "for_s")} for worker in workers
    ]
    response = jsonify(
        status="ready" if num_ready else "not ready", ready=num_ready, workers=states
    )
    if not num_ready:
        response.status_code = 503
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


@blueprint.get("/pool")
def pool() -> Response:
    """Every worker, and what the engine can do."""
    replica: Replica = current_app.extensions["gpupool"]
    engine = replica.engine
    able = engine.capabilities if engine is not None else frozenset()
    return jsonify(
        model=replica.settings.model_name,
        infer_type=replica.settings.infer_type,
        workers=_workers(),
        capabilities={feature: feature in able for feature in capabilities.FEATURES},
    )


def _workers() -> list[dict[str, Any]]:
    scoreboard: Scoreboard | None = current_app.extensions.get("gpupool.scoreboard")
    if scoreboard is None:
        return [_alone(current_app.extensions["gpupool"])]
    shown = []
    for slot in range(scoreboard.num_slots):
        rows = [scoreboard[index] for index in scoreboard.rows_of(slot)]
        shown += [row for row in rows if row.pid] or rows[:1]
    return [_worker(row) for row in shown]


def _worker(row: Row) -> dict[str, Any]:
    return {
        "slot": row.slot,
        "pid": row.pid,
        "state": row.state,
        "phase": row.phase,
        "fraction": row.fraction if row.fraction >= 0 else None,
        "for_s": round(time.monotonic() - row.since, 1),
        "gpus": row.gpus,
        "inflight": row.running + row.waiting,
        "waiting": row.waiting,
        "served": row.served,
        "restarts": row.restarts,
        "last_error": row.last_error,
    }


def _alone(replica: Replica) -> dict[str, Any]:
    """The one worker of a host without a scoreboard."""
    return {
        "slot": replica.slot,
        "state": replica.state,
        "phase": replica.phase,
        "fraction": replica.fraction,
        "for_s": round(time.monotonic() - replica.since, 1),
    }
