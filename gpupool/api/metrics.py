"""GET /metrics: the whole pool in Prometheus' text format, from any worker (worker process)."""

from __future__ import annotations

from flask import Blueprint, Response, current_app

from gpupool.engine_metrics import engine_text, merge
from gpupool.inquiry import Inquiry
from gpupool.metrics import lone_families, pool_families, render_families
from gpupool.replica import Replica

blueprint = Blueprint("metrics", __name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@blueprint.get("/metrics")
def metrics() -> Response:
    """Our own numbers of all workers, then what their engines tell."""
    replica: Replica = current_app.extensions["gpupool"]
    scoreboard = current_app.extensions.get("gpupool.scoreboard")
    if scoreboard is not None:
        families = pool_families(replica.settings, scoreboard)
    else:
        totals = current_app.extensions["gpupool.totals"]
        families = lone_families(replica.settings, replica.slot, totals)
    texts = {replica.slot: engine_text(replica)}
    inquiry: Inquiry | None = current_app.extensions.get("gpupool.inquiry")
    if inquiry is not None:
        texts |= inquiry.engine_texts()
    text = render_families(families) + merge(texts)
    return Response(text, content_type=CONTENT_TYPE)
