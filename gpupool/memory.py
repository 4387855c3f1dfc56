"""Does the model fit a worker's GPUs, and how many should those be? (preflight)

Asks the planner with what start_gunicorn.sh was given. Only what is certain is refused, and a
start is never stopped because the planner cannot judge. Only `auto` asks the network.
"""

from __future__ import annotations

import os
from dataclasses import replace

from gpupool.calibration import measured_overheads
from gpupool.errors import ConfigError
from gpupool.planner import machine as machines
from gpupool.planner.advice import Machine, Option, Plan, Subject, gib, make_plan
from gpupool.planner.arguments import Given, read_arguments
from gpupool.planner.checkpoint import read_checkpoint
from gpupool.planner.fit import Verdict
from gpupool.planner.model import Quantization
from gpupool.settings import Settings

MAX_REMEDIES = 3


def choose_gpus(settings: Settings) -> int:
    """GPUs per worker for --per_proc_gpus auto: as few as the model fits, for most replicas.

    1 without GPUs; ConfigError where nothing fits, or where the planner cannot tell.
    """
    machine = machines.here(settings.cuda_visible_devices)
    if machine is None:
        return 1
    given = read_arguments(settings.engine_args)
    asked = "--per_proc_gpus (PER_PROC_GPUS) is auto"
    if given.unclear:
        raise ConfigError(f"{asked}, which cannot take {given.unclear} into account; give a number")
    plan = _plan(settings, machine, given)
    if plan.throughput is None:
        raise ConfigError(f"{asked}, but {_explain(plan)}")
    return plan.throughput.fit.num_gpus


def judge(settings: Settings, per_proc_gpus: int) -> str | None:
    """ConfigError where the model certainly does not fit; a doubt comes back as a warning."""
    if settings.memory_plan == "off" or os.environ.get("VLLM_TARGET_DEVICE") == "cpu":
        return None
    machine = machines.here(settings.cuda_visible_devices)
    given = read_arguments(settings.engine_args)
    if machine is None or given.unclear:
        return None
    try:
        plan = _plan(settings, machine, given, per_proc_gpus)
    except ConfigError as error:
        return f"whether the model fits is not known: {error}"
    except Exception as error:  # a configuration that no planner has seen is no reason not to start
        return f"whether the model fits is not known: the planner failed ({error!r})"
    if not plan.options:
        return plan.why_impossible
    return _judge(settings, plan, plan.options[0])


def _judge(settings: Settings, plan: Plan, option: Option) -> str | None:
    if option.fit.verdict is Verdict.FITS:
        return None
    text = _explain(plan)
    # A family that is counted as another may be smaller than it seems, and of different GPUs only
    # the smallest were looked at.
    is_mixed = len({card.total_bytes for card in plan.machine.cards}) > 1
    if option.fit.verdict is Verdict.TIGHT or plan.subject.model.doubts or is_mixed:
        return text
    if settings.memory_plan == "warn":
        return text
    raise ConfigError(f"{text}; --memory_plan warn starts it all the same")


def _plan(
    settings: Settings, machine: Machine, given: Given, per_proc_gpus: int | None = None
) -> Plan:
    is_offline = per_proc_gpus is not None
    found = read_checkpoint(settings.model_name, given.ask.dtype, is_offline=is_offline)
    subject = _quantized(found.subject, given.quantization)
    if settings.infer_type == "transformers":
        # Its device map puts whole layers on each GPU.
        subject = replace(subject, model=replace(subject.model, is_layered=True))
    subject = replace(subject, engine=settings.infer_type or subject.engine)
    measured = measured_overheads(subject.name, machine, given.ask)
    return make_plan(
        subject,
        machine,
        given.ask,
        per_proc_gpus=per_proc_gpus,
        may_shorten=False,
        measured=measured,
    )


def _quantized(subject: Subject, method: str | None) -> Subject:
    """With the weights made smaller while they are loaded, as --quantization fp8 does."""
    if method != "fp8" or subject.model.quantization is not None:
        return subject
    return Subject(subject.name, replace(subject.model, quantization=Quantization("fp8", 8)))


def _explain(plan: Plan) -> str:
    """One line: what does not fit, by how much, and what would help."""
    if not plan.options:
        return plan.why_impossible
    found, card = plan.options[-1].fit, plan.machine.smallest
    may = "may not" if found.verdict is Verdict.TIGHT else "does not"
    text = (
        f"{plan.subject.name!r} {may} fit {found.num_gpus} x {card.name} per worker: of "
        f"{gib(found.budget_bytes)} on each, weights take {gib(found.weights_bytes)}, one request "
        f"of {found.max_model_len} tokens {gib(found.request_bytes)}, the rest about "
        f"{gib(found.overhead_bytes)}"
    )
    helps = "; or ".join(
        f"{r.what} ({r.arguments})" if r.arguments else r.what for r in plan.remedies[:MAX_REMEDIES]
    )
    return f"{text}. What would help: {helps or 'GPUs with more memory'}"
