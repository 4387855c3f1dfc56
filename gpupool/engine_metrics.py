"""Metrics that engines make themselves: the texts of several workers as one (worker process).

Line by line: prometheus_client's parser takes 60 microseconds for one, and the thousand lines of
each vLLM would hold up the tokens of the worker that is asked.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from gpupool.engines.base import Measured
from gpupool.replica import Replica

log = logging.getLogger(__name__)

OURS = "gpupool_"
SUFFIXES = ("", "_bucket", "_sum", "_count", "_total")

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
VALUE = r'"[^"\\]*(?:\\.[^"\\]*)*"'
HEADER = re.compile(rf"# (HELP|TYPE) ({NAME})(?: (.*))?")
LABEL = re.compile(rf"({NAME})(\s*=\s*{VALUE}\s*,?\s*)")
# Name, labels, value, and a time if there is one.
SAMPLE = re.compile(rf"({NAME})(?:\{{([^\"}}]*(?:{VALUE}[^\"}}]*)*)\}})?[ \t]+(\S+)([ \t]+-?\d+)?")


@dataclass(slots=True)
class Family:
    """The lines of one metric."""

    type: str = "untyped"
    headers: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)


def merge(texts: Mapping[int, str]) -> str:
    """The Prometheus texts of workers, by slot, as one, each sample with the label `worker`.

    A label of that name which was there already becomes `exported_worker`, as Prometheus has it.
    A text that is not valid is left out whole: what one engine says must not cost the others.
    """
    merged: dict[str, Family] = {}
    for slot, text in texts.items():
        try:
            families = _parse(text, str(slot))
        except ValueError as error:
            log.warning("worker %d: its engine's metrics are not valid: %s", slot, error)
            continue
        for name, family in families.items():
            known = merged.setdefault(name, Family(family.type, family.headers))
            if known.type == family.type:
                known.samples += family.samples
    lines = [line for family in merged.values() for line in (*family.headers, *family.samples)]
    return "".join(f"{line}\n" for line in lines)


def _parse(text: str, worker: str) -> dict[str, Family]:
    """Families by name, their samples with the label; ValueError names the first bad line."""
    families: dict[str, Family] = {}
    current = ""
    for line in text.split("\n"):
        if header := HEADER.fullmatch(line):
            current = header[2]
            family = families.setdefault(current, Family())
            family.headers.append(line)
            if header[1] == "TYPE":
                if not header[3]:
                    raise ValueError(f"{line[:200]!r} names no type")
                family.type = header[3]
        elif line.strip() and not line.startswith("#"):
            name, labelled = _label(line, worker)
            if name.removeprefix(current) not in SUFFIXES:
                current = name
            families.setdefault(current, Family()).samples.append(labelled)
    return {name: family for name, family in families.items() if not name.startswith(OURS)}


def _label(line: str, worker: str) -> tuple[str, str]:
    """A sample's name, and its line with the label."""
    sample = SAMPLE.fullmatch(line.strip())
    if sample is None:
        raise ValueError(f"{line[:200]!r} is no sample")
    name, labels, value, at = sample.groups("")
    float(value)
    if "worker" in labels:
        labels = LABEL.sub(_keep_apart, labels)
    return name, f'{name}{{worker="{worker}"{"," if labels else ""}{labels}}} {value}{at}'


def _keep_apart(label: re.Match[str]) -> str:
    name = "exported_worker" if label[1] == "worker" else label[1]
    return name + label[2]


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
