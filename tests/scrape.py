"""What a Prometheus server would read at a pool's /metrics."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.pool import Pool

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(pool: Pool) -> Samples:
    """One scrape on a connection of its own."""
    with urllib.request.urlopen(f"{pool.url}/metrics", timeout=10) as answer:
        return parse(answer.read().decode())


def parse(text: str) -> Samples:
    """Every sample; fails on a family or a sample that is there twice."""
    samples: Samples = {}
    names = []
    for family in text_string_to_metric_families(text):
        names.append(family.name)
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, key
            samples[key] = sample.value
    assert len(names) == len(set(names)), names
    return samples


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum of all samples that have these labels."""
    wanted = set(labels.items())
    return sum(v for (found, has), v in samples.items() if found == name and wanted <= has)
