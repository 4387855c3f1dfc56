"""The streams experiment's section of docs/benchmarks.md (driver, tests). Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.rounds import counts, median
from benchmarks.streams import CPU_GOAL, TOKEN_GOAL_MS, TTFT_GOAL_MS, WHATS, series_of
from benchmarks.table import describe_circumstances, render_spread, render_table

TITLE = "Streams against vLLM's own server"

TEXT = """\
What the way from the engine to the client costs. Both contenders run vLLM's OpenAI application in
front of the same scripted engine, on the same one core; the load client is on another. The engine
gives every stream a token each {step_ms:g} ms, all at the same tick, as a step of a batch does.
Streams are `POST /v1/completions` of {tokens} tokens, each on a connection of its own, and begin
within one second at times from a fixed seed.

The text of a token tells when its request reached the engine and when the token was due, by the
monotonic clock that all processes of the machine share; so a loop that is late for its engine is
seen, too. A front end that falls behind gets several tokens in one piece, as vLLM's does.

- TTFT added: from before the connection is opened to the request in the engine, and from the first
  token there to the client; the engine's own time is left out.
- token added: from a token in the engine to the client. All tokens of a step are due at once and
  one core writes them one after the other, so this grows with the number of streams.
- gap off: by how much the time between two tokens of a stream differs at the client from that in
  the engine, longer or shorter.
- CPU: of all the contender's processes, with vLLM's application and the scripted engine.
"""

PROFILE = """\
Where that CPU goes at {streams} streams, by a profiler (`cProfile`, in a run of its own: it makes
Python code slower, small functions most of all, and does not see what uvloop does between calls,
which is where uvicorn's writes happen; the pool writes from its own code).
"""

Values = Callable[[Mapping[str, Any]], float]


def render_section(result: Mapping[str, Any]) -> str:
    """The whole section."""
    text = TEXT.format(step_ms=1000 * result["step_s"], tokens=result["tokens"])
    legend = "".join(f"- `{name}`: {what}\n" for name, what in WHATS.items())
    parts = [f"## {TITLE}\n", text, legend]
    if has_numbers(result):
        scenes = result["scenes"]
        few = min(scenes, key=lambda scene: int(scene["streams"]))
        parts += [
            _scenes(scenes),
            _goals(few),
            PROFILE.format(streams=few["streams"]),
            _profile(result["profile_us"]),
        ]
    rounds = [one for series in series_of(result) for one in series]
    parts.append(describe_circumstances(result["measured"], rounds))
    return "\n".join(parts)


def has_numbers(result: Mapping[str, Any]) -> bool:
    """Whether each scene has a round that counts."""
    return all(any(map(counts, series)) for series in series_of(result))


def samples_of(scene: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """A contender's part of each round that counts."""
    return [one["samples"][name] for one in scene["rounds"] if counts(one)]


def fact(name: str, share: int) -> Values:
    """A percentile of a sample."""
    return lambda sample: float(sample["facts"][name][str(share)])


def cpu_ms(sample: Mapping[str, Any]) -> float:
    """Per 1,000 tokens."""
    return float(1e6 * sample["own_cpu_s"] / sample["tokens"])


def _scenes(scenes: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "streams", "contender", "TTFT added p50, ms", "p99", "token added p50, ms", "p99",
        "gap off p50, ms", "p99", "tokens per event", "CPU per 1,000 tokens, ms", "its core",
        "client's CPU",
    )  # fmt: skip
    return render_table(head, (_row(scene, name) for scene in scenes for name in WHATS))


def _row(scene: Mapping[str, Any], name: str) -> tuple[str, ...]:
    samples = samples_of(scene, name)

    def spread(values: Values, digits: int) -> str:
        return render_spread([values(sample) for sample in samples], digits)

    return (
        str(scene["streams"]),
        f"`{name}`",
        spread(fact("ttft_added_ms", 50), 1),
        spread(fact("ttft_added_ms", 99), 1),
        spread(fact("token_added_ms", 50), 2),
        spread(fact("token_added_ms", 99), 1),
        spread(fact("gap_off_ms", 50), 2),
        spread(fact("gap_off_ms", 99), 1),
        f"{median(s['tokens'] / s['facts']['events'] for s in samples):.2f}",
        spread(cpu_ms, 0),
        f"{median(s['own_cpu_s'] / s['seconds'] for s in samples):.0%}",
        f"{median(s['client_cpu_s'] / s['seconds'] for s in samples):.0%}",
    )


def _goals(scene: Mapping[str, Any]) -> str:
    """Of the medians. What vLLM's own server adds too cannot be less in a pool that runs vLLM's
    application; so the pool is judged alone, and by what it adds to that."""
    head = (f"{scene['streams']} streams", "median (lowest to highest)", "goal", "")
    return render_table(head, _judged(scene))


def _judged(scene: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    ttft, token, gap = fact("ttft_added_ms", 50), fact("token_added_ms", 50), fact("gap_off_ms", 50)
    pool, uvicorn = samples_of(scene, "pool"), samples_of(scene, "uvicorn")
    pairs = list(zip(pool, uvicorn, strict=True))
    beyond = [token(ours) - token(theirs) for ours, theirs in pairs]
    ratios = [cpu_ms(ours) / cpu_ms(theirs) for ours, theirs in pairs]
    yield _verdict("TTFT added, ms", list(map(ttft, pool)), TTFT_GOAL_MS)
    yield _verdict("gap off, ms", list(map(gap, pool)), TOKEN_GOAL_MS)
    yield _verdict("token added, ms", list(map(token, pool)), TOKEN_GOAL_MS)
    yield _verdict("token added, ms more than `uvicorn`", beyond, TOKEN_GOAL_MS)
    yield _verdict("CPU per token, `pool` / `uvicorn`", ratios, CPU_GOAL)


def _verdict(what: str, values: Sequence[float], limit: float) -> tuple[str, ...]:
    verdict = "met" if median(values) <= limit else "missed"
    return what, render_spread(values, 2), f"at most {limit:g}", verdict


def _profile(profile_us: Mapping[str, Mapping[str, float]]) -> str:
    names = list(profile_us)
    head = ("own time per token, µs", *(f"`{name}`" for name in names))
    parts = next(iter(profile_us.values()))
    rows = [(part, *(f"{profile_us[name][part]:.0f}" for name in names)) for part in parts]
    total = ("all together", *(f"{sum(profile_us[name].values()):.0f}" for name in names))
    return render_table(head, [*rows, total])
