"""GET /livez, /readyz and /health: whether to send requests here (worker process)."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, current_app, jsonify

from gpupool import load_times
from gpupool.api.keys import has_key
from gpupool.api.pool import describe_workers
from gpupool.replica import Replica
from gpupool.scoreboard import Scoreboard

blueprint = Blueprint("health", __name__)

SHOWN = ("slot", "state", "phase", "fraction", "for_s", "estimate_s")


@blueprint.get("/livez")
def livez() -> Response:
    """This process answers."""
    return jsonify(status="live")


@blueprint.get("/readyz")
@blueprint.get("/health", endpoint="health")
def readyz() -> Response:
    """200 when at least one worker of the pool can generate, else 503. What each worker is at is
    for those with the key."""
    num_ready = _num_ready()
    workers = [{key: worker[key] for key in SHOWN} for worker in describe_workers()]
    body: dict[str, Any] = {"status": "ready" if num_ready else "not ready"}
    if has_key():
        body |= {"ready": num_ready, "workers": workers}
    response = jsonify(body)
    if not num_ready:
        response.status_code = 503
        response.headers["Retry-After"] = str(_retry_after_s(workers))
    return response


def _num_ready() -> int:
    scoreboard: Scoreboard | None = current_app.extensions.get("gpupool.scoreboard")
    if scoreboard is not None:
        return scoreboard.num_ready()
    replica: Replica = current_app.extensions["gpupool"]
    return int(replica.state == "ready")


def _retry_after_s(workers: list[dict[str, Any]]) -> int:
    """When the first of the loading workers should be ready."""
    known = [
        load_times.retry_after_s(worker["for_s"], worker["estimate_s"])
        for worker in workers
        if worker["state"] == "loading" and worker["estimate_s"] is not None
    ]
    return min(known, default=load_times.DEFAULT_RETRY_AFTER_S)
