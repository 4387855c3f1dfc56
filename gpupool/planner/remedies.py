"""What would make a model fit, with the numbers that a plan with it shows. Pure; any process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gpupool.planner.fit import Ask, Card, Fit, Verdict
from gpupool.planner.model import Quantization
from gpupool.planner.option import MIN_CONTEXT, Machine, Subject
from gpupool.planner.split import sizes

FOUR_BITS = Quantization("estimated", 4 + 20 / 128)  # as AWQ and GPTQ have it, in groups of 128


@dataclass(frozen=True, slots=True)
class Remedy:
    """One thing that helps by itself."""

    what: str
    arguments: str  # for start_gunicorn.sh; empty where it is no argument
    fit: Fit


def remedies(subject: Subject, machine: Machine, num_gpus: int, ask: Ask) -> Iterator[Remedy]:
    """For a worker of so many GPUs that does not fit as it was asked for."""
    card = machine.smallest
    yield from _more_gpus(subject, machine, num_gpus, ask)
    if subject.engine != "vllm":
        return  # what follows are vLLM's arguments
    as_asked = subject.on(card, num_gpus, ask)
    length = as_asked.safe_length
    if MIN_CONTEXT <= length < as_asked.max_model_len:
        shorter = subject.on(card, num_gpus, replace(ask, max_model_len=length))
        yield Remedy(f"a context of {length} tokens", f"-- --max-model-len {length}", shorter)
    if as_asked.cache.value_bytes > 1:
        small = replace(ask, kv_cache_dtype="fp8")
        yield from _one("an fp8 KV cache", "--kv-cache-dtype fp8", subject, card, num_gpus, small)
    if subject.model.dtype == "float32":
        half = subject.changed(replace(subject.model, dtype="bfloat16"))
        yield from _one("weights as bfloat16", "--dtype bfloat16", half, card, num_gpus, ask)
    if subject.model.quantization is None:
        small = replace(ask, quantization="fp8")
        yield from _one("fp8 weights", "--quantization fp8", subject, card, num_gpus, small)
        copy = subject.changed(replace(subject.model, quantization=FOUR_BITS))
        yield from _one("a 4-bit copy of the model (AWQ or GPTQ)", "", copy, card, num_gpus, ask)


def _more_gpus(subject: Subject, machine: Machine, num_gpus: int, ask: Ask) -> Iterator[Remedy]:
    for count in sizes(subject.model):
        if count <= num_gpus:
            continue
        found = subject.on(machine.smallest, count, ask)
        if found.verdict is Verdict.FITS:
            is_here = count <= machine.most
            where = "" if is_here else f" (here: {machine.most})"
            arguments = f"--per_proc_gpus {count}" if is_here else ""
            yield Remedy(f"{count} GPUs per worker{where}", arguments, found)
            return


def _one(
    what: str, arguments: str, subject: Subject, card: Card, num_gpus: int, ask: Ask
) -> Iterator[Remedy]:
    """The remedy if it works: by itself, or with a shorter context."""
    found = subject.on(card, num_gpus, ask)
    words = ["--", arguments] if arguments else []
    if found.verdict is Verdict.FITS:
        yield Remedy(what, " ".join(words), found)
        return
    length = found.safe_length
    if length >= MIN_CONTEXT:
        shorter = subject.on(card, num_gpus, replace(ask, max_model_len=length))
        words = [*(words or ["--"]), f"--max-model-len {length}"]
        yield Remedy(f"{what} and a context of {length} tokens", " ".join(words), shorter)
