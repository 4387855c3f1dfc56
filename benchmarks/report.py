"""The raw numbers as docs/benchmarks.md (driver, tests). Pure: the same numbers, the same text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import access, balance, balance_report, launchers, plot, streams, streams_report
from benchmarks.experiments import EXPERIMENTS, Comparison, Experiment
from benchmarks.rounds import counts, median, rates, ratios
from benchmarks.table import describe_circumstances, render_spread, render_table

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
DOCUMENT = ROOT / "docs" / "benchmarks.md"
PLOT = ROOT / "docs" / balance_report.PLOT
OWN_SECTIONS: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    balance.NAME: (balance_report.TITLE, balance_report.render_section),
    streams.NAME: (streams_report.TITLE, streams_report.render_section),
    access.NAME: (access.TITLE, access.render_section),
    launchers.NAME: (launchers.TITLE, launchers.render_section),
}
"""Title and text of what is not an experiment of whole batches."""
NAMES = (*EXPERIMENTS, *OWN_SECTIONS)

HEAD = """\
# Benchmarks

Made by `make bench` (`python -m benchmarks --rounds N --only EXPERIMENT`) from the raw numbers in
`benchmarks/results/`; do not edit.

All contenders run one after the other in each round, in changing order; ratios are taken within a
round, and the median of them is the result. A lost or short answer makes the round invalid; a
round in which others used the machine is repeated.

In all sections but the last four, the model is SmolLM2-135M-Instruct in bfloat16 on vLLM's CPU
build: small, so that the share of everything around the model is large. Every request has one
prompt of about 30 tokens, new in each round, and gets exactly 64 tokens (greedy, `ignore_eos`); all
requests of a run are sent at once. All engines have the same arguments (eager, no prefix cache, the
same batch limits) and stay loaded and idle while others run. The bare engine's time is that of
`LLM.generate` alone; the others' is from the first request sent to the last answer read.
"""


def load_results() -> dict[str, dict[str, Any]]:
    """What was measured, by experiment."""
    paths = [RESULTS / f"{name}.json" for name in NAMES]
    return {path.stem: json.loads(path.read_text()) for path in paths if path.exists()}


def write_result(result: Mapping[str, Any]) -> None:
    """Replace an experiment's raw numbers."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{result['experiment']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


def render_document(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole of docs/benchmarks.md."""
    sections = [
        render(name, results[name])
        if name in results
        else f"## {_title(name)}\n\nNot measured yet: `python -m benchmarks --only {name}`.\n"
        for name in NAMES
    ]
    return "\n".join([HEAD, *sections])


def write_documents() -> None:
    """All that is made from the committed numbers."""
    results = load_results()
    DOCUMENT.write_text(render_document(results))
    if balance.NAME in results:
        PLOT.write_text(plot.render(results[balance.NAME]))


def render(name: str, result: Mapping[str, Any]) -> str:
    """The section of an experiment."""
    if name in OWN_SECTIONS:
        return OWN_SECTIONS[name][1](result)
    return render_section(EXPERIMENTS[name], result)


def _title(name: str) -> str:
    return OWN_SECTIONS[name][0] if name in OWN_SECTIONS else EXPERIMENTS[name].title


def render_section(experiment: Experiment, result: Mapping[str, Any]) -> str:
    """One experiment of whole batches."""
    num_counted = sum(map(counts, result["rounds"]))
    parts = [f"## {experiment.title}\n", f"{experiment.text}\n"]
    if num_counted:
        parts += [_contenders(result), _comparisons(experiment.comparisons, result)]
    parts.append(describe_circumstances(result["measured"], result["rounds"]))
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
                render_spread(rates(result, name), 0),
                f"{client:.1%}",
            )
        )
    head = ("contender", "what", "cores", "requests", "tokens/s", "client's CPU")
    return render_table(head, rows)


def _comparisons(comparisons: Iterable[Comparison], result: Mapping[str, Any]) -> str:
    rows = []
    for one in comparisons:
        values = ratios(result, one.name, one.base)
        goal, verdict = "", ""
        if one.goal is not None:
            goal, verdict = f"{one.goal:g}", "met" if is_met(one, values) else "missed"
        rows.append((f"`{one.name}` / `{one.base}`", render_spread(values, 2), goal, verdict))
    return render_table(("ratio of tokens/s", "median (lowest to highest)", "goal", ""), rows)


def is_met(comparison: Comparison, values: Iterable[float]) -> bool:
    """By the median, unrounded."""
    return comparison.goal is None or median(values) >= comparison.goal
