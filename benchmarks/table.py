"""Pieces of text that every section of docs/benchmarks.md is made of (driver, tests). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.rounds import (
    MAX_FOREIGN_SHARE,
    counts,
    foreign_share,
    is_quiet,
    is_valid,
    median,
    samples_of,
)


def describe_circumstances(measured: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> str:
    """Where and when it was measured, and how quiet it was."""
    # Without a round that counts, all are described.
    counted = [one for one in rounds if counts(one)] or rounds
    samples = [sample for one in counted for sample in samples_of(one)]
    foreign = median(map(foreign_share, samples))
    stolen = median(sample["stolen_cpu_s"] / sample["seconds"] for sample in samples)
    loads = [one["load_average"][0] for one in counted]
    idle = max(one["idle_cpu_share"] for one in counted)
    versions = ", ".join(f"{name} {number}" for name, number in measured["versions"].items())
    num_invalid = sum(not is_valid(one) for one in rounds)
    num_disturbed = sum(is_valid(one) and not is_quiet(one) for one in rounds)
    lines = [
        f"{measured['date']}; {measured['cpu']}, {measured['cores']} cores, "
        f"{measured['memory_gib']:g} GiB; {versions}.",
        f"Rounds that count: {sum(map(counts, rounds))} of {len(rounds)}; {num_invalid} invalid, "
        f"{num_disturbed} disturbed (others used more than {MAX_FOREIGN_SHARE:.0%} of a core).",
        f"Load average before the rounds: {min(loads):g} to {max(loads):g}. While a contender ran, "
        f"others used {foreign:.0%} of a core and the hypervisor took {stolen:.0%} (medians); all "
        f"contenders together, idle, used at most {idle:.0%}.",
    ]
    faults = [
        f"Round {index + 1}, `{name}`: {sample['fault']}."
        for index, one in enumerate(rounds)
        for name, sample in one["samples"].items()
        if sample["fault"]
    ]
    return "\n\n".join([*lines, *faults]) + "\n"


def render_spread(values: Sequence[float], digits: int) -> str:
    """Median and extremes."""
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return f"{median(values):.{digits}f} ({low} to {high})"


def render_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """In Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
