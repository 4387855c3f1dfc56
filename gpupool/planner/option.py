"""One way to cut a machine's GPUs for a model, and the room that it leaves. Pure; any process."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gpupool.planner.dtypes import LOADED_BITS
from gpupool.planner.fit import Ask, Card, Fit, Stored, Verdict, fit
from gpupool.planner.model import Model, Quantization

MIN_CONTEXT = 2048
"""A context is not shortened to less than this; whoever wants less asks for it."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The GPUs to plan for."""

    name: str
    cards: tuple[Card, ...]
    max_per_worker: int | None = None  # None: all; a process can use only one MIG device
    visible: str | None = None  # what was asked for of this machine's GPUs

    @property
    def smallest(self) -> Card:
        """Of mixed GPUs the smallest decides: every worker gets the same."""
        return min(self.cards, key=lambda card: card.total_bytes)

    @property
    def most(self) -> int:
        """GPUs that one worker can have."""
        return self.max_per_worker or len(self.cards)

    def num_free(self, num_bytes: int) -> int:
        """GPUs that have so much free now."""
        return sum(card.free_bytes >= num_bytes for card in self.cards)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be loaded: the model, and its files where they were read."""

    name: str
    model: Model
    stored: Stored | None = None
    engine: str = "vllm"

    def on(self, card: Card, num_gpus: int, ask: Ask, measured: int | None = None) -> Fit:
        """A worker with so many such GPUs."""
        loaded = self.as_loaded(ask.quantization)
        return fit(
            loaded.model, card, num_gpus, ask, stored=loaded.stored, measured_overhead=measured
        )

    def as_loaded(self, method: str | None) -> Subject:
        """With weights that vLLM makes smaller while it loads them; what is stored quantised
        stays as it is."""
        if method is None or self.model.quantization is not None:
            return self
        if method not in LOADED_BITS:
            doubt = f"--quantization {method} is not known to the planner; weights are as stored"
            return replace(self, model=replace(self.model, doubts=(*self.model.doubts, doubt)))
        quantization = Quantization(method, LOADED_BITS[method])
        return self.changed(replace(self.model, quantization=quantization))

    def changed(self, model: Model) -> Subject:
        """With weights other than those of the files."""
        return replace(self, model=model, stored=None)


@dataclass(frozen=True, slots=True)
class Option:
    """One way to cut the machine's GPUs."""

    fit: Fit
    num_replicas: int
    num_spare: int  # GPUs left over
    num_now: int  # replicas for which GPUs are free now; the others wait for theirs
    is_shortened: bool = False  # with a shorter context than the model has

    @property
    def works(self) -> bool:
        """Whether a worker loads, as far as it can be known."""
        return self.fit.verdict is not Verdict.FAILS


def option(
    subject: Subject,
    machine: Machine,
    num_gpus: int,
    ask: Ask,
    measured: int | None = None,
    *,
    may_shorten: bool = True,
) -> Option:
    """Workers of so many GPUs. A context that nobody asked for is shortened where it does not
    fit, if it may be."""
    found = subject.on(machine.smallest, num_gpus, ask, measured)
    is_shortened = False
    if may_shorten and found.verdict is not Verdict.FITS and ask.max_model_len is None:
        length = found.safe_length
        if length >= min(MIN_CONTEXT, found.max_model_len):
            asked = replace(ask, max_model_len=length)
            found = subject.on(machine.smallest, num_gpus, asked, measured)
            is_shortened = True
    num_cards = len(machine.cards)
    return Option(
        found,
        num_cards // num_gpus,
        num_cards % num_gpus,
        machine.num_free(found.budget_bytes) // num_gpus,
        is_shortened,
    )
