"""A model and a machine -> the plan: every way to cut the GPUs, the best ones, and what helps when
none is good enough. Pure; any process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gpupool.planner.fit import GIB, Ask, Card, Fit, Stored, Verdict, fit
from gpupool.planner.model import Model, Quantization
from gpupool.planner.split import refusal, sizes

MIN_CONTEXT = 2048
"""A context is not shortened to less than this; whoever wants less asks for it."""

MIN_BATCH = 8
"""Typical requests at once from which on a replica's GPUs are well used: a step reads all weights
however few requests it serves."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The GPUs to plan for."""

    name: str
    cards: tuple[Card, ...]
    max_per_worker: int | None = None  # None: all; a process can use only one MIG device

    @property
    def smallest(self) -> Card:
        """Of mixed GPUs the smallest decides: every worker gets the same."""
        return min(self.cards, key=lambda card: card.total_bytes)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be loaded: the model, and its files where they were read."""

    name: str
    model: Model
    stored: Stored | None = None
    engine: str = "vllm"


@dataclass(frozen=True, slots=True)
class Option:
    """One way to cut the machine's GPUs."""

    fit: Fit
    num_replicas: int
    num_spare: int  # GPUs left over
    is_shortened: bool = False  # with a shorter context than the model has

    @property
    def works(self) -> bool:
        """Whether a worker loads, as far as it can be known."""
        return self.fit.verdict is not Verdict.FAILS


@dataclass(frozen=True, slots=True)
class Remedy:
    """What would make a model fit, with the numbers."""

    what: str
    arguments: str  # for start_gunicorn.sh; empty where it is no argument
    fit: Fit


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
        """Of every size that is not possible, in one line."""
        return "; ".join(why for _, why in self.refusals)


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
    most = machine.max_per_worker or len(machine.cards)
    counts = [per_proc_gpus] if per_proc_gpus else list(_counts(most))
    known = measured or {}
    refusals = [(count, why) for count in counts if (why := refusal(subject.model, count))]
    refused = {count for count, _ in refusals}
    possible = [count for count in counts if count not in refused]
    options = tuple(
        _option(subject, machine, count, ask, known.get(count), may_shorten=may_shorten)
        for count in possible
    )
    good = [found for found in options if found.works and found.num_replicas]
    sure = [found for found in good if found.fit.verdict is Verdict.FITS] or good
    return Plan(
        subject=subject,
        machine=machine,
        ask=ask,
        options=options,
        refusals=tuple(refusals),
        throughput=_for_throughput(sure, ask),
        context=_for_context(sure),
        remedies=tuple(_remedies(subject, machine, options, ask)),
    )


def _counts(num_cards: int) -> Iterator[int]:
    """Sizes worth naming: each that uses the machine differently."""
    seen = set()
    for count in range(1, num_cards + 1):
        is_power = count & (count - 1) == 0
        if num_cards % count == 0 or is_power:
            seen.add(count)
    return iter(sorted(seen))


def _option(
    subject: Subject,
    machine: Machine,
    num_gpus: int,
    ask: Ask,
    measured: int | None,
    *,
    may_shorten: bool,
) -> Option:
    num_cards = len(machine.cards)
    found = _fit(subject, machine.smallest, num_gpus, ask, measured)
    is_shortened = False
    if may_shorten and found.verdict is not Verdict.FITS and ask.max_model_len is None:
        length = _safe_length(found)
        if length >= min(MIN_CONTEXT, found.max_model_len):
            asked = replace(ask, max_model_len=length)
            found = _fit(subject, machine.smallest, num_gpus, asked, measured)
            is_shortened = True
    return Option(found, num_cards // num_gpus, num_cards % num_gpus, is_shortened)


def _fit(subject: Subject, card: Card, num_gpus: int, ask: Ask, measured: int | None = None) -> Fit:
    return fit(
        subject.model, card, num_gpus, ask, stored=subject.stored, measured_overhead=measured
    )


def _safe_length(found: Fit) -> int:
    """The longest context that fits even if the overhead is more than estimated, as a round
    number."""
    room = found.kv_bytes - found.doubt_bytes
    longest = found.cache.longest(room, found.cache.model.max_positions)
    return longest if longest < 1024 else longest // 1024 * 1024


def _for_throughput(options: list[Option], ask: Ask) -> Option | None:
    """Most replicas, each with room for a batch worth a step."""
    full = [o for o in options if o.fit.num_requests(ask.typical_length) >= MIN_BATCH]
    return max(full or options, key=lambda o: (o.num_replicas, o.fit.num_tokens), default=None)


def _for_context(options: list[Option]) -> Option | None:
    """The longest context; where several have the model's own, the most replicas."""
    return max(options, key=lambda o: (o.fit.longest, o.num_replicas), default=None)


def _remedies(
    subject: Subject, machine: Machine, options: tuple[Option, ...], ask: Ask
) -> Iterator[Remedy]:
    """Each by itself, for the largest worker; nothing where an option works as it is."""
    if not options or any(o.fit.verdict is Verdict.FITS and not o.is_shortened for o in options):
        return
    card, num_gpus = machine.smallest, options[-1].fit.num_gpus
    as_asked = _fit(subject, card, num_gpus, ask)
    yield from _more_gpus(subject, machine, num_gpus, ask)
    length = _safe_length(as_asked)
    if MIN_CONTEXT <= length < as_asked.max_model_len:
        shorter = _fit(subject, card, num_gpus, replace(ask, max_model_len=length))
        yield Remedy(f"a context of {length} tokens", f"-- --max-model-len {length}", shorter)
    if as_asked.cache.value_bytes > 1:
        small = _fit(subject, card, num_gpus, replace(ask, kv_cache_dtype="fp8"))
        if small.verdict is not Verdict.FAILS:
            yield Remedy("an fp8 KV cache", "-- --kv-cache-dtype fp8", small)
    yield from _smaller_weights(subject, card, num_gpus, ask)


def _more_gpus(subject: Subject, machine: Machine, num_gpus: int, ask: Ask) -> Iterator[Remedy]:
    for count in sizes(subject.model):
        if count <= num_gpus:
            continue
        found = _fit(subject, machine.smallest, count, ask)
        if found.verdict is Verdict.FITS:
            num_cards = len(machine.cards)
            here = "" if count <= num_cards else f" (here: {num_cards})"
            arguments = "" if here else f"--per_proc_gpus {count}"
            yield Remedy(f"{count} GPUs per worker{here}", arguments, found)
            return


def _smaller_weights(subject: Subject, card: Card, num_gpus: int, ask: Ask) -> Iterator[Remedy]:
    model = subject.model
    if model.dtype == "float32":
        half = _fit(Subject(subject.name, replace(model, dtype="bfloat16")), card, num_gpus, ask)
        yield from _if_it_works("weights as bfloat16", "-- --dtype bfloat16", half)
    if model.quantization is not None or subject.engine != "vllm":
        return
    for what, arguments, bits in (
        ("fp8 weights", "-- --quantization fp8", 8.0),
        ("a 4-bit copy of the model (AWQ or GPTQ)", "", 4 + 20 / 128),
    ):
        small = replace(model, quantization=Quantization("estimated", bits))
        found = _fit(Subject(subject.name, small), card, num_gpus, ask)
        yield from _if_it_works(what, arguments, found)


def _if_it_works(what: str, arguments: str, found: Fit) -> Iterator[Remedy]:
    if found.verdict is Verdict.FITS:
        yield Remedy(what, arguments, found)
        return
    length = _safe_length(found)
    if length >= MIN_CONTEXT:
        ahead = f"{arguments} " if arguments else "-- "
        text = f"{what} and a context of {length} tokens"
        yield Remedy(text, f"{ahead}--max-model-len {length}", found)


def gib(num_bytes: float) -> str:
    """Bytes as people read them."""
    return f"{num_bytes / GIB:.1f} GiB"
