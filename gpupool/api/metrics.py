"""GET /metrics: the whole pool in Prometheus' text format, from any worker (worker process)."""

from __future__ import annotations

import logging

from flask import Blueprint, Response, current_app

from gpupool.engine_metrics import merge
from gpupool.engines.base import Measured
from gpupool.metrics import lone_families, pool_families, render_families
from gpupool.replica import Replica

log = logging.getLogger(__name__)

blueprint = Blueprint("metrics", __name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@blueprint.get("/metrics")
def metrics() -> Response:
    """Our own numbers of all workers, then what this worker's engine tells."""
    replica: Replica = current_app.extensions["gpupool"]
    scoreboard = current_app.extensions.get("gpupool.scoreboard")
    if scoreboard is not None:
        families = pool_families(replica.settings, scoreboard)
    else:
        totals = current_app.extensions["gpupool.totals"]
        families = lone_families(replica.settings, replica.slot, totals)
    text = render_families(families) + merge({replica.slot: engine_text(replica)})
    return Response(text, content_type=CONTENT_TYPE)


def engine_text(replica: Replica) -> str:
    """What this worker's engine tells; empty if it is not loaded or tells nothing."""
    engine = replica.engine
    if not isinstance(engine, Measured):
        return ""
    try:
        return engine.metrics_text()
    except Exception:
        log.exception("the engine could not tell its metrics")
        return ""
