"""A model and a machine -> the plan: every way to cut the GPUs, the best ones, and what helps when
none is good enough. Pure; any process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gpupool.planner.fit import Ask, Verdict
from gpupool.planner.option import Machine, Option, Subject, option
from gpupool.planner.remedies import Remedy, remedies
from gpupool.planner.split import refusal, sizes

MIN_BATCH = 8
"""Typical requests at once from which on a replica's GPUs are well used: a step reads all weights
however few requests it serves."""

LLAMA_CPP = (
    "the overhead is vLLM's; llama.cpp has less, and reserves its KV cache by --ctx-size, which "
    "all slots share"
)


@dataclass(frozen=True, slots=True)
class Plan:
    """The planner's answer."""

    subject: Subject
    machine: Machine
    ask: Ask
    options: tuple[Option, ...]
    refusals: tuple[tuple[int, str], ...]  # sizes that are not possible, and why
    throughput: Option | None
    context: Option | None
    remedies: tuple[Remedy, ...]

    @property
    def why_impossible(self) -> str:
        """Of every size that is not possible, in one line, and which are."""
        most = max(self.machine.most, *(count for count, _ in self.refusals))
        possible = ", ".join(map(str, sizes(self.subject.model, most)))
        reasons = "; ".join(why for _, why in self.refusals)
        return f"{reasons}; possible are {possible} GPU(s) per worker"

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the numbers do not cover, as sentences."""
        doubts = list(self.subject.model.doubts)
        own, asked = self.subject.model.max_positions, self.ask.max_model_len
        if asked is not None and asked > own:
            doubts.append(
                f"the model's own context is {own} tokens; vLLM refuses a longer one unless its "
                "configuration stretches it (--hf-overrides)"
            )
        if self.subject.engine == "llama_cpp":
            doubts.append(LLAMA_CPP)
        return tuple(doubts)


def make_plan(
    subject: Subject,
    machine: Machine,
    ask: Ask,
    *,
    per_proc_gpus: int | None = None,
    measured: dict[int, int] | None = None,
    may_shorten: bool = True,
) -> Plan:
    """The plan for one machine; with `per_proc_gpus` the recommendation is for that number only.
    `measured` is the overhead per GPU after a load on so many GPUs. A context that nobody asked
    for is shortened where it does not fit, unless `may_shorten` is False."""
    subject = subject.as_loaded(ask.quantization)
    counts = [per_proc_gpus] if per_proc_gpus else list(_counts(machine))
    known = measured or {}
    refusals = {count: why for count in counts if (why := refusal(subject.model, count))}
    options = tuple(
        option(subject, machine, count, ask, known.get(count), may_shorten=may_shorten)
        for count in counts
        if count not in refusals
    )
    good = [found for found in options if found.works and found.num_replicas]
    sure = [found for found in good if found.fit.verdict is Verdict.FITS] or good
    fits = any(o.fit.verdict is Verdict.FITS and not o.is_shortened for o in options)
    helps: Iterator[Remedy] = iter(())
    if options and not fits:
        helps = remedies(subject, machine, options[-1].fit.num_gpus, ask)
    return Plan(
        subject=subject,
        machine=machine,
        ask=ask,
        options=options,
        refusals=tuple(refusals.items()),
        throughput=_for_throughput(sure, ask),
        context=_for_context(sure),
        remedies=tuple(helps),
    )


def _counts(machine: Machine) -> Iterator[int]:
    """Sizes worth naming: each that uses the machine differently."""
    for count in range(1, machine.most + 1):
        is_power = count & (count - 1) == 0
        if machine.most % count == 0 or is_power:
            yield count


def _for_throughput(options: list[Option], ask: Ask) -> Option | None:
    """Most replicas, each with room for a batch worth a step."""
    full = [o for o in options if o.fit.num_requests(ask.typical_length) >= MIN_BATCH]
    return max(full or options, key=lambda o: (o.num_replicas, o.fit.num_tokens), default=None)


def _for_context(options: list[Option]) -> Option | None:
    """The longest context; where several have the model's own, the most replicas."""
    return max(options, key=lambda o: (o.fit.longest, o.num_replicas), default=None)
