"""Metrics that engines make themselves: the texts of several workers in one (worker process)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from gpupool.metrics import render_families

log = logging.getLogger(__name__)

OURS = "gpupool_"


def merge(texts: Mapping[int, str]) -> str:
    """The Prometheus texts of workers, by slot, as one, each sample with the label `worker`.

    A label of that name which was there already becomes `exported_worker`, as Prometheus has it.
    A text that is not valid is left out whole: what one engine says must not cost the others.
    """
    merged: dict[str, Metric] = {}
    for slot, text in texts.items():
        for family in _parse(slot, text):
            known = merged.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            if known.type == family.type:
                known.samples += _labelled(family.samples, str(slot))
    return render_families(list(merged.values()))


def _parse(slot: int, text: str) -> list[Metric]:
    try:
        families = list(text_string_to_metric_families(text))
    except ValueError as error:
        log.warning("worker %d: its engine's metrics are not valid: %s", slot, error)
        return []
    return [family for family in families if not family.name.startswith(OURS)]


def _labelled(samples: Iterable[Sample], worker: str) -> Iterator[Sample]:
    for sample in samples:
        labels = dict(sample.labels)
        if "worker" in labels:
            labels["exported_worker"] = labels.pop("worker")
        yield sample._replace(labels={"worker": worker} | labels)
