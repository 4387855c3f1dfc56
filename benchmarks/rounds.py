"""Rounds: in each, all contenders of an experiment do the same work, one after the other
(driver).

Machines are noisy, so two contenders are compared within a round, never across rounds.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.contender import Contender, Running, on_cores
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


def run(
    experiment: Experiment, num_rounds: int, folder: Path, quiet_timeout_s: float
) -> dict[str, Any]:
    """Load all contenders, warm them up, run the rounds; the raw numbers. Each run waits up to
    `quiet_timeout_s` for a quiet machine."""
    allowed = sorted(os.sched_getaffinity(0))
    contenders = experiment.contenders(allowed)
    facts = machine.describe()
    with ExitStack() as stack:
        loaded: dict[str, Running] = {}
        for contender in contenders:
            _say(f"{experiment.name}: loading {contender.name}")
            start = contender.start(folder, contender.cores)
            loaded[contender.name] = stack.enter_context(start)
        run_round(contenders, loaded, WARM_UP, WARM_UP_QUIET_S)
        rounds: list[dict[str, Any]] = []
        while sum(map(counts, rounds)) < num_rounds and len(rounds) < num_rounds * MAX_TRIES:
            rounds.append(run_round(contenders, loaded, len(rounds), quiet_timeout_s))
            _say(f"{experiment.name}: round {len(rounds)}: {_brief(rounds[-1])}")
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


def run_round(
    contenders: list[Contender],
    loaded: Mapping[str, Running],
    index: int,
    quiet_timeout_s: float,
) -> dict[str, Any]:
    """One round. Who is first changes from round to round."""
    load = os.getloadavg()
    everyone = [pid for running in loaded.values() for pid in running.pids()]
    idle_share = 0.0
    samples = {}
    first = index % len(contenders)
    for contender in contenders[first:] + contenders[:first]:
        idle_share = max(idle_share, machine.await_quiet(everyone, quiet_timeout_s))
        sample = measure(contender, loaded[contender.name], index)
        samples[contender.name] = asdict(sample)
    return {
        "load_average": [round(value, 2) for value in load],
        "idle_cpu_share": round(idle_share, 3),
        "samples": samples,
    }


def measure(contender: Contender, running: Running, round_index: int) -> Sample:
    """One run, with the load client on cores that the contender does not use, if there are."""
    prompts = make_prompts(round_index, contender.num_requests)
    allowed = os.sched_getaffinity(0)
    pids = running.pids()
    with on_cores(sorted(allowed.difference(contender.cores) or allowed)):
        own, busy, stolen = machine.read_cpu_s(pids), machine.read_busy_s(), machine.read_stolen_s()
        client = time.process_time()
        answered = running.generate(prompts)
        client = time.process_time() - client
        busy, stolen = machine.read_busy_s() - busy, machine.read_stolen_s() - stolen
        own = machine.read_cpu_s(pids) - own
    return Sample(
        seconds=round(answered.seconds, 4),
        tokens=sum(count or 0 for count in answered.tokens),
        client_cpu_s=round(client, 3),
        own_cpu_s=round(own, 2),
        foreign_cpu_s=round(max(busy - own - client, 0), 2),
        stolen_cpu_s=round(stolen, 2),
        fault=answered.find_fault(),
    )


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


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
