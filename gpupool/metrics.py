"""The pool's numbers as Prometheus metric families, whichever worker is asked (worker process).

Counters and histograms are summed up over the two rows of a slot, so that they go on through
restarts and reloads. The label `worker` is the slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from gpupool import __version__
from gpupool.scoreboard import STATES, Row, Scoreboard
from gpupool.settings import Settings
from gpupool.totals import HISTOGRAMS, Observations, Totals, added
from gpupool.vitals import GpuUse

GAUGES: dict[str, tuple[str, Callable[[Row], int | None]]] = {
    "in_flight": (
        "Sequences that a worker runs or keeps waiting.",
        lambda row: row.running + row.waiting,
    ),
    "running": ("What a worker runs now.", lambda row: row.running),
    "waiting": ("What waits at a worker for a place.", lambda row: row.waiting),
    "slots": ("Sequences that a worker's engine runs at once.", lambda row: row.slots or None),
    "load_failures": ("Loads of the engine that failed in a row.", lambda row: row.failures),
    "leased_gpus": ("GPUs that a worker holds.", lambda row: len(row.gpus)),
}

GPU_GAUGES: dict[str, tuple[str, Callable[[GpuUse], float | None]]] = {
    "memory_used_bytes": ("Memory in use on a leased GPU.", lambda use: use.used_bytes),
    "memory_total_bytes": ("Memory of a leased GPU.", lambda use: use.total_bytes),
    "utilization_ratio": ("Share of the time in which a GPU computed.", lambda u: u.utilization),
    "temperature_celsius": ("Temperature of a leased GPU.", lambda use: use.temperature_c),
    "power_watts": ("Power that a leased GPU draws.", lambda use: use.power_w),
}


class Families(Collector):
    """A fixed list of families, to be rendered."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        """Called once, by the registry."""
        return self._families


def render_families(families: list[Metric]) -> str:
    """Prometheus' text format. Never through the library's default registry, which belongs to
    the engine."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Families(families))
    return generate_latest(registry).decode()


def pool_families(settings: Settings, scoreboard: Scoreboard) -> list[Metric]:
    """Everything that the scoreboard knows."""
    families = [
        _info(settings),
        *worker_counters(
            {
                slot: [scoreboard.totals[index] for index in scoreboard.rows_of(slot)]
                for slot in range(scoreboard.num_slots)
            }
        ),
        _restarts(scoreboard),
        _states(scoreboard),
        *_gauges(scoreboard),
        _memory(scoreboard),
        *_gpu_gauges(scoreboard),
    ]
    return [family for family in families if family.samples]


def lone_families(settings: Settings, slot: int, totals: Totals) -> list[Metric]:
    """What a worker without a scoreboard knows."""
    return [_info(settings), *worker_counters({slot: [totals]})]


def worker_counters(totals: dict[int, list[Totals]]) -> Iterator[Metric]:
    """Counters and histograms of each slot, summed over its rows."""
    requests = CounterMetricFamily(
        "gpupool_requests",
        "HTTP requests that were answered.",
        labels=("worker", "route", "status", "reason"),
    )
    prompt = CounterMetricFamily(
        "gpupool_prompt_tokens", "Tokens of the prompts that were answered.", labels=("worker",)
    )
    generated = CounterMetricFamily(
        "gpupool_generated_tokens", "Tokens of the completions given.", labels=("worker",)
    )
    for slot, rows in totals.items():
        # A counter that is there from the start loses no first increase.
        counts = {("/infer", 200, ""): 0}
        for row in rows:
            for key, count in row.requests().items():
                counts[key] = counts.get(key, 0) + count
        for (route, status, reason), count in counts.items():
            requests.add_metric((str(slot), route, str(status), reason), count)
        prompt.add_metric((str(slot),), sum(row.prompt_tokens for row in rows))
        generated.add_metric((str(slot),), sum(row.generated_tokens for row in rows))
    yield from (requests, prompt, generated)
    for name, buckets in HISTOGRAMS.items():
        family = HistogramMetricFamily(f"gpupool_{name}", buckets.help, labels=("worker",))
        for slot, rows in totals.items():
            found = added(row.observations(name) for row in rows)
            family.add_metric((str(slot),), _cumulative(found, buckets.bounds), found.sum)
        yield family


def _cumulative(found: Observations, bounds: tuple[float, ...]) -> list[tuple[str, float]]:
    names = (*(repr(float(bound)) for bound in bounds), "+Inf")
    return list(zip(names, accumulate(found.counts), strict=True))


def _info(settings: Settings) -> Metric:
    labels = {
        "version": __version__,
        "model": settings.model_name,
        "infer_type": settings.infer_type,
    }
    family = GaugeMetricFamily("gpupool_info", "What is served here.", labels=tuple(labels))
    family.add_metric(tuple(labels.values()), 1)
    return family


def _restarts(scoreboard: Scoreboard) -> Metric:
    family = CounterMetricFamily(
        "gpupool_restarts", "Workers that ended, for whatever reason.", labels=("worker",)
    )
    for slot in range(scoreboard.num_slots):
        ended = sum(scoreboard[index].restarts for index in scoreboard.rows_of(slot))
        family.add_metric((str(slot),), ended)
    return family


def _states(scoreboard: Scoreboard) -> Metric:
    family = GaugeMetricFamily(
        "gpupool_worker_state",
        "1 for the state of a worker; for two states while a worker is being replaced.",
        labels=("worker", "state"),
    )
    for slot in range(scoreboard.num_slots):
        found = {scoreboard[index].state for index in scoreboard.shown_rows(slot)}
        for state in STATES[1:]:
            family.add_metric((str(slot), state), int(state in found))
    return family


def _gauges(scoreboard: Scoreboard) -> Iterator[Metric]:
    for name, (text, number) in GAUGES.items():
        family = GaugeMetricFamily(f"gpupool_worker_{name}", text, labels=("worker",))
        for slot in range(scoreboard.num_slots):
            numbers = [number(scoreboard[index]) for index in scoreboard.shown_rows(slot)]
            known = [found for found in numbers if found is not None]
            if known:
                family.add_metric((str(slot),), sum(known))
        yield family


def _memory(scoreboard: Scoreboard) -> Metric:
    """Left out for a worker of which nobody knows it: 0 would be a lie."""
    family = GaugeMetricFamily(
        "gpupool_worker_memory_bytes",
        "Memory in use on the worker's GPUs; without GPUs, of the worker's processes.",
        labels=("worker",),
    )
    for slot in range(scoreboard.num_slots):
        used = [scoreboard.vitals.read(i).memory_bytes for i in scoreboard.shown_rows(slot)]
        known = [number for number in used if number is not None]
        if len(known) == len(used):
            family.add_metric((str(slot),), sum(known))
    return family


def _gpu_gauges(scoreboard: Scoreboard) -> Iterator[Metric]:
    leases = {
        (str(row.slot), uuid): use
        for index, row in enumerate(scoreboard)
        if row.pid
        for uuid, use in _uses(scoreboard, index)
    }
    labels = ("worker", "gpu")
    held = GaugeMetricFamily("gpupool_lease", "1 for each GPU a worker holds.", labels=labels)
    for key in leases:
        held.add_metric(key, 1)
    yield held
    for name, (text, number) in GPU_GAUGES.items():
        family = GaugeMetricFamily(f"gpupool_gpu_{name}", text, labels=labels)
        for key, use in leases.items():
            value = number(use)
            if value is not None:
                family.add_metric(key, value)
        yield family


def _uses(scoreboard: Scoreboard, index: int) -> Iterator[tuple[str, GpuUse]]:
    """Each leased GPU and what is used of it, all unknown if the lease is newer than that."""
    uuids = scoreboard[index].gpus
    uses = scoreboard.vitals.read(index).gpus
    if len(uses) != len(uuids):
        uses = (GpuUse(),) * len(uuids)
    yield from zip(uuids, uses, strict=True)
