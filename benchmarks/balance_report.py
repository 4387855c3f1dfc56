"""The balance experiment's section of docs/benchmarks.md (driver, tests). Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.balance import GOAL, WHATS, series_of
from benchmarks.rounds import counts, median, tokens_per_second
from benchmarks.table import describe_circumstances, render_spread, render_table

TITLE = "Balance against stock gthread and nginx"
PLOT = "balance.svg"

TEXT = """\
How requests of very different lengths are spread over workers. The engine is scripted: it sleeps
{step_ms:g} ms x (1 + n / {batch_cost:g}) for a step of a batch of n and gives each of its sequences
a token; {slots} run at once, the others wait. So a machine with few cores can play one with many
GPUs, and every contender has the very same engine and Flask application in each worker. Clients
come in an open loop: Poisson arrivals and lognormal lengths (median 18 tokens, at most 320; a
tenth of the requests has two fifths of the tokens) from a fixed seed, the same for all contenders
of a round, over connections that are used again. The load is the share of what all full batches
give. How long a request will be, only the engine can tell.

The time to the first token (TTFT) counts from when the client was due to come to the step that
gave the token. The engine writes that time into its answer, by the monotonic clock that all
processes of the machine share; so whatever the request waited for is inside it, on the way and in
any queue. Latency ends when the answer is read. Runs start with idle workers and take in clients
for about {run_s:g} s; who comes in the first second is left out of the percentiles. Each number is
the median of the rounds, with the lowest and the highest of them in brackets.
"""

OVERHEAD = """\
### What the pool costs per request

The same application with an engine that answers at once, one worker on one core, clients on
another core that ask again as soon as they are answered, over kept-alive connections.
"""

IDEAL = "one queue before all workers that costs nothing, computed for the same clients"

NO_NGINX = """\
nginx is not among the contenders: it was neither on PATH nor in the variable `NGINX`.
"""


def render_section(result: Mapping[str, Any]) -> str:
    """The whole section."""
    model = result["model"]
    text = TEXT.format(
        step_ms=1000 * model["step_s"],
        batch_cost=model["batch_cost"],
        slots=model["slots"],
        run_s=result["run_s"],
    )
    parts = [f"## {TITLE}\n", text, _legend(result)]
    if has_numbers(result):
        parts += [
            f"![The slowest hundredth's time to the first token, by load]({PLOT})\n",
            _scenes(result["scenes"]),
            _ratios(result["scenes"]),
            OVERHEAD,
            _overhead(result["overhead"]),
            _goal(result["overhead"]),
        ]
    rounds = [one for series in series_of(result) for one in series]
    parts.append(describe_circumstances(result["measured"], rounds))
    return "\n".join(parts)


def has_numbers(result: Mapping[str, Any]) -> bool:
    """Whether each scene has a round that counts."""
    return all(any(map(counts, series)) for series in series_of(result))


def names_of(scene: Mapping[str, Any]) -> list[str]:
    """The contenders, in the order in which they are shown."""
    return [name for name in WHATS if name in scene["rounds"][0]["samples"]]


def values_of(scene: Mapping[str, Any], name: str, fact: str, share: str) -> list[float]:
    """A contender's percentile in each round that counts."""
    rounds = filter(counts, scene["rounds"])
    return [one["samples"][name]["facts"][fact][share] for one in rounds]


def _legend(result: Mapping[str, Any]) -> str:
    names = names_of(result["scenes"][0])
    lines = [f"- `{name}`: {WHATS[name]}" for name in names]
    lines.append(f"- ideal: {IDEAL}")
    return "\n".join(lines) + "\n" + ("" if "nginx" in names else f"\n{NO_NGINX}")


def _scenes(scenes: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "workers", "load", "contender", "TTFT p50, ms", "p90", "p99", "latency p50, ms", "p99",
        "busiest worker", "CPU per request, ms",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for scene in scenes:
        rows += [_row(scene, name) for name in names_of(scene)]
        rows.append(_ideal_row(scene))
    return render_table(head, rows)


def ideals_of(scene: Mapping[str, Any], share: str) -> list[float]:
    """The computed percentile of each round that counts."""
    pairs = zip(scene["rounds"], scene["ideal_ttft_ms"], strict=True)
    return [float(ideal[share]) for one, ideal in pairs if counts(one)]


def _ideal_row(scene: Mapping[str, Any]) -> tuple[str, ...]:
    middle = [f"{median(ideals_of(scene, share)):.0f}" for share in ("50", "90")]
    tail = render_spread(ideals_of(scene, "99"), 0)
    return str(scene["workers"]), f"{scene['load']:.0%}", "ideal", *middle, tail, "", "", "", ""


def _row(scene: Mapping[str, Any], name: str) -> tuple[str, ...]:
    samples = [one["samples"][name] for one in scene["rounds"] if counts(one)]

    def middle(fact: str, share: str) -> str:
        return f"{median(values_of(scene, name, fact, share)):.0f}"

    return (
        str(scene["workers"]),
        f"{scene['load']:.0%}",
        f"`{name}`",
        middle("ttft_ms", "50"),
        middle("ttft_ms", "90"),
        render_spread(values_of(scene, name, "ttft_ms", "99"), 0),
        middle("latency_ms", "50"),
        middle("latency_ms", "99"),
        f"{median(map(_busiest, samples)):.2f}",
        f"{median(map(_cpu_ms, samples)):.1f}",
    )


def _busiest(sample: Mapping[str, Any]) -> float:
    """How many times the mean of all workers' tokens the busiest one gave."""
    tokens = sample["facts"]["tokens_by_worker"]
    return float(max(tokens) * len(tokens) / sum(tokens))


def _cpu_ms(sample: Mapping[str, Any]) -> float:
    """Of all the contender's processes; its engines' steps are in it."""
    return float(1000 * sample["own_cpu_s"] / sample["facts"]["requests"])


def _ratios(scenes: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (str(scene["workers"]), f"{scene['load']:.0%}", f"`{name}`", *_ratio(scene, name))
        for scene in scenes
        for name in names_of(scene)[1:]
    ]
    head = ("workers", "load", "pool against", "ratio of TTFT p90", "of TTFT p99")
    return render_table(head, rows)


def _ratio(scene: Mapping[str, Any], name: str) -> Iterator[str]:
    for share in ("90", "99"):
        pairs = zip(
            values_of(scene, "pool", "ttft_ms", share),
            values_of(scene, name, "ttft_ms", share),
            strict=True,
        )
        yield render_spread([own / other for own, other in pairs], 2)


def _overhead(series: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "clients", "contender", "requests/s", "latency p50, ms", "p99", "CPU per request, ms",
        "client's CPU",
    )  # fmt: skip
    return render_table(head, (_cost(one, name) for one in series for name in names_of(one)))


def _cost(one: Mapping[str, Any], name: str) -> tuple[str, ...]:
    samples = [found["samples"][name] for found in one["rounds"] if counts(found)]
    return (
        str(one["clients"]),
        f"`{name}`",
        render_spread([tokens_per_second(sample) for sample in samples], 0),
        f"{median(values_of(one, name, 'latency_ms', '50')):.2f}",
        f"{median(values_of(one, name, 'latency_ms', '99')):.2f}",
        f"{median(1000 * s['own_cpu_s'] / s['tokens'] for s in samples):.2f}",
        f"{median(s['client_cpu_s'] / s['seconds'] for s in samples):.0%}",
    )


def _goal(series: Sequence[Mapping[str, Any]]) -> str:
    """With all clients, as one alone leaves the server idle in between."""
    rows = []
    for one in series:
        values = rate_ratios(one)
        has_goal = one["clients"] == max(other["clients"] for other in series)
        verdict = "met" if median(values) >= GOAL else "missed"
        goal = (f"{GOAL:g}", verdict) if has_goal else ("", "")
        rows.append((str(one["clients"]), render_spread(values, 2), *goal))
    return render_table(("clients", "`pool` / `stock`, requests/s", "goal", ""), rows)


def rate_ratios(one: Mapping[str, Any]) -> list[float]:
    """How many times stock gthread's requests/s the pool answers, in each round that counts."""
    rounds = filter(counts, one["rounds"])
    pairs = ((found["samples"]["pool"], found["samples"]["stock"]) for found in rounds)
    return [tokens_per_second(own) / tokens_per_second(other) for own, other in pairs]
