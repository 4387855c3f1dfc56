"""The raw numbers as docs/benchmarks.md (driver, tests). Pure: the same numbers, the same text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.experiments import EXPERIMENTS, Comparison, Experiment
from benchmarks.rounds import (
    MAX_FOREIGN_SHARE,
    counts,
    foreign_share,
    is_quiet,
    is_valid,
    median,
    rates,
    ratios,
    samples_of,
)

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
DOCUMENT = ROOT / "docs" / "benchmarks.md"

HEAD = """\
# Benchmarks

Made by `make bench` (`python -m benchmarks --rounds N --only EXPERIMENT`) from the raw numbers in
`benchmarks/results/`; do not edit.

The model is SmolLM2-135M-Instruct in bfloat16 on vLLM's CPU build: small, so that the share of
everything around the model is large. Every request has one prompt of about 30 tokens, new in each
round, and gets exactly 64 tokens (greedy, `ignore_eos`); all requests of a run are sent at once.
All engines have the same arguments (eager, no prefix cache, the same batch limits) and stay
loaded and idle while others run. All contenders run one after the other in each round, in
changing order; ratios are taken within a round, and the median of them is the result. A lost or
short answer makes the round invalid; a round in which others used the machine is repeated. The
bare engine's time is that of `LLM.generate` alone; the others' is from the first request sent to
the last answer read.
"""


def load_results() -> dict[str, dict[str, Any]]:
    """What was measured, by experiment."""
    paths = [RESULTS / f"{name}.json" for name in EXPERIMENTS]
    return {path.stem: json.loads(path.read_text()) for path in paths if path.exists()}


def write_result(result: Mapping[str, Any]) -> None:
    """Replace an experiment's raw numbers."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{result['experiment']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


def render_document(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole of docs/benchmarks.md."""
    sections = [
        render_section(experiment, results[name])
        if name in results
        else f"## {experiment.title}\n\nNot measured yet: `python -m benchmarks --only {name}`.\n"
        for name, experiment in EXPERIMENTS.items()
    ]
    return "\n".join([HEAD, *sections])


def render_section(experiment: Experiment, result: Mapping[str, Any]) -> str:
    """One experiment."""
    num_counted = sum(map(counts, result["rounds"]))
    parts = [f"## {experiment.title}\n", f"{experiment.text}\n"]
    if num_counted:
        parts += [_contenders(result), _comparisons(experiment.comparisons, result)]
    parts.append(_circumstances(result))
    return "\n".join(parts)


def _contenders(result: Mapping[str, Any]) -> str:
    rows = []
    for contender in result["contenders"]:
        name = contender["name"]
        samples = [one["samples"][name] for one in result["rounds"] if counts(one)]
        client = median(sample["client_cpu_s"] / sample["seconds"] for sample in samples)
        rows.append(
            (
                f"`{name}`",
                contender["what"],
                str(len(contender["cores"])),
                str(contender["requests"]),
                _spread(rates(result, name), 0),
                f"{client:.1%}",
            )
        )
    head = ("contender", "what", "cores", "requests", "tokens/s", "client's CPU")
    return _table(head, rows)


def _comparisons(comparisons: Iterable[Comparison], result: Mapping[str, Any]) -> str:
    rows = []
    for one in comparisons:
        values = ratios(result, one.name, one.base)
        goal, verdict = "", ""
        if one.goal is not None:
            goal, verdict = f"{one.goal:g}", "met" if is_met(one, values) else "missed"
        rows.append((f"`{one.name}` / `{one.base}`", _spread(values, 2), goal, verdict))
    return _table(("ratio of tokens/s", "median (lowest to highest)", "goal", ""), rows)


def is_met(comparison: Comparison, values: Iterable[float]) -> bool:
    """By the median, unrounded."""
    return comparison.goal is None or median(values) >= comparison.goal


def _circumstances(result: Mapping[str, Any]) -> str:
    rounds, measured = result["rounds"], result["measured"]
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


def _spread(values: list[float], digits: int) -> str:
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return f"{median(values):.{digits}f} ({low} to {high})"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
