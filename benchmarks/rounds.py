"""Rounds: in each, all contenders of an experiment do the same work, one after the other
(driver).

Machines are noisy, so two contenders are compared within a round, never across rounds.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.contender import Contender, L, Outcome, Running, on_cores
from benchmarks.experiments import Experiment
from benchmarks.work import ENGINE, SAMPLING, make_prompts

WARM_UP = -1  # a round of its own, which does not count
WARM_UP_QUIET_S = 2
MAX_FOREIGN_SHARE = 0.15
"""Of one core: where others worked more than this while a contender ran, the round does not
count, whatever its result is."""
MAX_TRIES = 3  # rounds per round asked for


@dataclass(frozen=True, slots=True)
class Sample:
    """One contender's part of a round."""

    seconds: float
    tokens: int
    client_cpu_s: float  # of the load client, inside the measured time or just beside it
    own_cpu_s: float  # of the contender's processes
    foreign_cpu_s: float  # of everybody else on the machine
    stolen_cpu_s: float  # taken by the hypervisor
    fault: str | None
    facts: dict[str, Any]  # what this kind of work tells besides


Work = Callable[[Contender[L], int], Callable[[L], Outcome]]
"""Prepares a round's work for a contender, given the round's index, and is not measured; what it
returns does the work, and is."""


def all_at_once(contender: Contender[Running], index: int) -> Callable[[Running], Outcome]:
    """All prompts of a round at the same time."""
    prompts = make_prompts(index, contender.num_requests)
    return lambda running: running.generate(prompts)


def run(
    experiment: Experiment, num_rounds: int, folder: Path, quiet_timeout_s: float
) -> dict[str, Any]:
    """Load all contenders, warm them up, run the rounds; the raw numbers. Each run waits up to
    `quiet_timeout_s` for a quiet machine."""
    contenders = experiment.contenders(sorted(os.sched_getaffinity(0)))
    facts = machine.describe()
    with load(experiment.name, contenders, folder) as loaded:
        run_round(contenders, loaded, all_at_once, WARM_UP, WARM_UP_QUIET_S)
        rounds = run_rounds(
            experiment.name, contenders, loaded, all_at_once, num_rounds, quiet_timeout_s
        )
    return {
        "experiment": experiment.name,
        "measured": facts,
        "engine": ENGINE,
        "sampling": SAMPLING,
        "contenders": [
            {
                "name": contender.name,
                "what": contender.what,
                "cores": list(contender.cores),
                "requests": contender.num_requests,
            }
            for contender in contenders
        ],
        "rounds": rounds,
    }


@contextmanager
def load(title: str, contenders: Sequence[Contender[L]], folder: Path) -> Iterator[Mapping[str, L]]:
    """All of them, by name; they end with the context."""
    with ExitStack() as stack:
        loaded: dict[str, L] = {}
        for contender in contenders:
            say(f"{title}: loading {contender.name}")
            start = contender.start(folder, contender.cores)
            loaded[contender.name] = stack.enter_context(start)
        yield loaded


def run_rounds(
    title: str,
    contenders: Sequence[Contender[L]],
    loaded: Mapping[str, L],
    work: Work[L],
    num_rounds: int,
    quiet_timeout_s: float,
) -> list[dict[str, Any]]:
    """Until so many count, or too many did not."""
    rounds: list[dict[str, Any]] = []
    while sum(map(counts, rounds)) < num_rounds and len(rounds) < num_rounds * MAX_TRIES:
        rounds.append(run_round(contenders, loaded, work, len(rounds), quiet_timeout_s))
        say(f"{title}: round {len(rounds)}: {_brief(rounds[-1])}")
    return rounds


def run_round(
    contenders: Sequence[Contender[L]],
    loaded: Mapping[str, L],
    work: Work[L],
    index: int,
    quiet_timeout_s: float,
) -> dict[str, Any]:
    """One round. Who is first changes from round to round."""
    load_average = os.getloadavg()
    everyone = [pid for running in loaded.values() for pid in running.pids()]
    idle_share = 0.0
    samples = {}
    first = index % len(contenders)
    for contender in [*contenders[first:], *contenders[:first]]:
        idle_share = max(idle_share, machine.await_quiet(everyone, quiet_timeout_s))
        act = work(contender, index)
        samples[contender.name] = asdict(measure(contender, loaded[contender.name], act))
    return {
        "load_average": [round(value, 2) for value in load_average],
        "idle_cpu_share": round(idle_share, 3),
        "samples": samples,
    }


def measure(contender: Contender[L], loaded: L, act: Callable[[L], Outcome]) -> Sample:
    """One run, with the load client on cores that the contender does not use, if there are."""
    allowed = os.sched_getaffinity(0)
    pids = loaded.pids()
    with on_cores(sorted(allowed.difference(contender.cores) or allowed)):
        own, busy, stolen = machine.read_cpu_s(pids), machine.read_busy_s(), machine.read_stolen_s()
        client = _read_client_s()
        outcome = act(loaded)
        client = _read_client_s() - client
        busy, stolen = machine.read_busy_s() - busy, machine.read_stolen_s() - stolen
        own = machine.read_cpu_s(pids) - own
    return Sample(
        seconds=round(outcome.seconds, 4),
        tokens=outcome.count_tokens(),
        client_cpu_s=round(client, 3),
        own_cpu_s=round(own, 2),
        foreign_cpu_s=round(max(busy - own - client, 0), 2),
        stolen_cpu_s=round(stolen, 2),
        fault=outcome.find_fault(),
        facts=outcome.facts(),
    )


def _read_client_s() -> float:
    """Work of this process so far, and of load generators that it ran and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def is_valid(one_round: Mapping[str, Any]) -> bool:
    """Whether every contender gave every answer in full."""
    return all(sample["fault"] is None for sample in samples_of(one_round))


def is_quiet(one_round: Mapping[str, Any]) -> bool:
    """Whether the machine was the contenders' alone."""
    return all(foreign_share(sample) <= MAX_FOREIGN_SHARE for sample in samples_of(one_round))


def counts(one_round: Mapping[str, Any]) -> bool:
    """Whether the round is part of the result."""
    return is_valid(one_round) and is_quiet(one_round)


def samples_of(one_round: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One per contender."""
    return list(one_round["samples"].values())


def foreign_share(sample: Mapping[str, Any]) -> float:
    """Of one core, used by others while the contender ran."""
    return float(sample["foreign_cpu_s"] / sample["seconds"])


def tokens_per_second(sample: Mapping[str, Any]) -> float:
    return float(sample["tokens"] / sample["seconds"])


def rates(result: Mapping[str, Any], name: str) -> list[float]:
    """A contender's tokens/s in each round that counts."""
    rounds = filter(counts, result["rounds"])
    return [tokens_per_second(one["samples"][name]) for one in rounds]


def ratios(result: Mapping[str, Any], name: str, base: str) -> list[float]:
    """How many times the tokens/s of `base`, in each round that counts."""
    pairs = zip(rates(result, name), rates(result, base), strict=True)
    return [rate / base_rate for rate, base_rate in pairs]


def median(values: Iterable[float]) -> float:
    """Of at least one value."""
    return statistics.median(values)


def _brief(one_round: Mapping[str, Any]) -> str:
    parts = []
    for name, sample in one_round["samples"].items():
        fault = f" INVALID: {sample['fault']}" if sample["fault"] else ""
        parts.append(f"{name} {tokens_per_second(sample):.0f} tok/s{fault}")
    foreign = max(map(foreign_share, samples_of(one_round)))
    disturbed = "" if is_quiet(one_round) else f"; DISTURBED, others used {foreign:.0%} of a core"
    return ", ".join(sorted(parts)) + disturbed


def say(text: str) -> None:
    """To who watches."""
    sys.stderr.write(f"{text}\n")
