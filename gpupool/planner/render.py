"""A plan as text for people. Pure; any process."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from gpupool.planner.advice import Plan
from gpupool.planner.dtypes import kv_value_bytes
from gpupool.planner.fit import GIB, UTILIZATION, Ask, Verdict, gib
from gpupool.planner.kv_cache import Cache
from gpupool.planner.option import Option
from gpupool.planner.remedies import Remedy

HEAD = ("GPUs per worker", "replicas", "weights", "overhead", "KV cache", "KV tokens", "requests")
MAX_SLOTS = 32  # of llama.cpp; as engines/llama_cpp_defaults.py has it
WORDS = {
    Verdict.FITS: "fits",
    Verdict.TIGHT: "may fit",
    Verdict.FAILS: "does not fit",
}


def render(plan: Plan, source: str, bytes_by_type: dict[str, int]) -> str:
    """All of it, as `gpupool plan` prints it."""
    return (
        "\n".join([*_head(plan, source, bytes_by_type), "", *_table(plan), *_advice(plan)]) + "\n"
    )


def _head(plan: Plan, source: str, bytes_by_type: dict[str, int]) -> Iterator[str]:
    model, card = plan.subject.model, plan.machine.smallest
    kind = model.dtype
    if model.quantization is not None:
        kind = f"{model.quantization.method} and {kind}"
    yield (
        f"{plan.subject.name}: {_billions(model.num_parameters)} parameters, {kind}, "
        f"{model.num_layers} layers, context {model.max_positions:,} tokens (from {source})"
    )
    cache = Cache(model, kv_value_bytes(plan.ask.kv_cache_dtype, model.dtype))
    slides = " while it is in every window" if any(layer.window for layer in model.layers) else ""
    yield f"KV cache: {cache.token_bytes / 1024:,.1f} KiB for a token{slides}"
    if bytes_by_type:
        stored = ", ".join(f"{gib(size)} {name}" for name, size in bytes_by_type.items())
        yield f"stored: {stored}"
    share = plan.ask.gpu_memory_utilization
    yield (
        f"{plan.machine.name}: {gib(card.total_bytes)} each, of which {share:.0%} are used: "
        f"{gib(card.total_bytes * share)}"
    )
    free = [found.free_bytes for found in plan.machine.cards]
    if min(free) < card.total_bytes * share:
        yield f"free now: {', '.join(map(gib, free))}; a worker waits until others leave its GPUs"
    yield from (f"in doubt: {doubt}" for doubt in plan.doubts)


def _table(plan: Plan) -> Iterator[str]:
    typical = plan.ask.typical_length
    per_gpu = ("GiB per GPU",) * 3
    rows: list[tuple[str, ...]] = [HEAD, ("", "", *per_gpu, "per replica", f"of {typical}")]
    rows += [_row(plan, option) for option in plan.options]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=False)]
        yield "  ".join([*cells, *row[len(HEAD) :]]).rstrip()
    for count, why in plan.refusals:
        yield f"{count}: not possible: {why}"


def _row(plan: Plan, option: Option) -> tuple[str, ...]:
    found = option.fit
    numbers = (
        str(found.num_gpus),
        str(option.num_replicas),
        _number(found.weights_bytes),
        _number(found.overhead_bytes),
    )
    if found.weights_bytes > found.budget_bytes:
        missing = found.weights_bytes - found.budget_bytes
        return (*numbers, "-", "-", "-", f"does not fit: {gib(missing)} too much for the weights")
    requests = found.num_requests(plan.ask.typical_length)
    text = WORDS[found.verdict]
    if found.verdict is Verdict.FAILS:
        text += f": {gib(found.missing_bytes)} too little for {found.max_model_len:,} tokens"
    elif option.is_shortened:
        text += f" with a context of {found.max_model_len:,} tokens"
    if option.works and option.num_now < option.num_replicas:
        text += f", {option.num_now} of {option.num_replicas} now"
    if option.num_spare:
        text += f", {option.num_spare} GPU(s) left over"
    if found.measured_bytes is not None:
        text += f" (overhead as measured; estimated: {_number(found.estimated.num_bytes)})"
    cache = _number(max(found.kv_bytes, 0))
    return (*numbers, cache, f"{found.num_tokens:,}", f"{requests:.0f}", text)


def _advice(plan: Plan) -> Iterator[str]:
    yield ""
    if plan.options:
        yield _overhead(plan.throughput or plan.options[-1])
    if plan.throughput is None:
        yield "nothing fits" + _by_how_much(plan)
    else:
        yield f"for throughput: {_choice(plan.throughput)}"
        yield f"  {start_line(plan, plan.throughput)}"
    if plan.context is not None and plan.context is not plan.throughput:
        yield f"for context: {_choice(plan.context)}"
        yield f"  {start_line(plan, plan.context)}"
    if plan.remedies:
        yield "what would help, each by itself:"
        yield from (f"  {_remedy(remedy)}" for remedy in plan.remedies)


def _overhead(option: Option) -> str:
    parts = option.fit.estimated
    return (
        f"overhead with {option.fit.num_gpus} GPU(s), estimated: CUDA {gib(parts.context)}, one "
        f"step {gib(parts.step)}, CUDA graphs {gib(parts.graphs)}, collectives "
        f"{gib(parts.collectives)}"
    )


def _choice(option: Option) -> str:
    found = option.fit
    length = found.max_model_len
    replicas = f"{option.num_replicas} replica" + ("s" if option.num_replicas != 1 else "")
    return (
        f"{replicas} of {found.num_gpus} GPU(s), each with room for {found.num_tokens:,} tokens: "
        f"{found.num_requests(length):.1f} requests of {length:,} at once"
    )


def _remedy(remedy: Remedy) -> str:
    found = remedy.fit
    text = f"{remedy.what}: {gib(found.weights_bytes)} of weights per GPU, "
    text += f"{gib(max(found.kv_bytes, 0))} left for {found.num_tokens:,} tokens"
    return f"{text} ({remedy.arguments})" if remedy.arguments else text


def _by_how_much(plan: Plan) -> str:
    if not plan.options:
        return f": {plan.why_impossible}"
    best = plan.options[-1]
    if best.num_replicas == 0:
        return f": {best.fit.num_gpus} GPUs per worker are more than there are"
    found = best.fit
    return (
        f": with {found.num_gpus} GPU(s) per worker {gib(found.missing_bytes)} are missing on each"
    )


def start_line(plan: Plan, option: Option) -> str:
    """The command that starts a pool so."""
    subject, ask = plan.subject, plan.ask
    words = ["bash", "start_gunicorn.sh", "--model_name", shlex.quote(subject.name)]
    words += ["--per_proc_gpus", str(option.fit.num_gpus), "--infer_type", subject.engine]
    if plan.machine.visible is not None:
        words += ["--cuda_visible_devices", shlex.quote(plan.machine.visible)]
    arguments = engine_arguments(subject.engine, ask, option)
    return " ".join(words + (["--", *arguments] if arguments else []))


def engine_arguments(engine: str, ask: Ask, option: Option) -> list[str]:
    """What the engine must be told for the plan to hold."""
    if engine == "llama_cpp":
        return _llama_cpp_arguments(ask, option)
    words: list[str] = []
    if option.is_shortened or ask.max_model_len:
        words += ["--max-model-len", str(option.fit.max_model_len)]
    if ask.kv_cache_dtype != "auto":
        words += ["--kv-cache-dtype", ask.kv_cache_dtype]
    if ask.gpu_memory_utilization != UTILIZATION:
        words += ["--gpu-memory-utilization", f"{ask.gpu_memory_utilization:g}"]
    if ask.dtype != "auto":
        words += ["--dtype", ask.dtype]
    if ask.max_num_seqs:
        words += ["--max-num-seqs", str(ask.max_num_seqs)]
    if ask.max_num_batched_tokens:
        words += ["--max-num-batched-tokens", str(ask.max_num_batched_tokens)]
    if ask.quantization:
        words += ["--quantization", ask.quantization]
    if ask.is_eager:
        words += ["--enforce-eager"]
    return words


def _llama_cpp_arguments(ask: Ask, option: Option) -> list[str]:
    """Its slots share one context. Without these it gives each slot 4096 tokens."""
    if not option.is_shortened and not ask.max_model_len:
        return []
    length = option.fit.max_model_len
    slots = max(1, min(int(option.fit.num_requests(length)), MAX_SLOTS))
    return ["--ctx-size", str(length * slots), "--parallel", str(slots)]


def _number(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.1f}"


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"
