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
from gpupool.planner.advice import Plan, make_plan
from gpupool.planner.arguments import Given, read_arguments
from gpupool.planner.checkpoint import read_checkpoint
from gpupool.planner.fit import Ask, Verdict, gib
from gpupool.planner.option import Machine, Option
from gpupool.setting_types import ENGINE_NAMES, HOSTED
from gpupool.settings import Settings

MAX_REMEDIES = 3
WEIGHTS_ALONE = Ask(gpu_memory_utilization=1, max_model_len=1)
"""Of the other engines only this is known: a GPU that cannot hold the weights cannot serve them."""


def choose_gpus(settings: Settings) -> int:
    """GPUs per worker for --per_proc_gpus auto: those of the recommendation for throughput, with
    the whole context. 1 without GPUs; ConfigError where nothing fits, or nobody can tell."""
    machine = machines.here(settings.cuda_visible_devices)
    if machine is None or settings.infer_type == HOSTED:
        return 1
    given = read_arguments(settings.engine_args)
    asked = "--per_proc_gpus (PER_PROC_GPUS) is auto"
    if given.unclear:
        raise ConfigError(f"{asked}, which cannot take {given.unclear} into account; give a number")
    plan = _plan(settings, machine, given.ask)
    if plan.throughput is None:
        raise ConfigError(f"{asked}, but {_explain(plan)}")
    return plan.throughput.fit.num_gpus


def judge(settings: Settings, per_proc_gpus: int) -> str | None:
    """ConfigError where the model certainly does not fit; a doubt comes back as a warning."""
    has_weights = settings.infer_type in ENGINE_NAMES and settings.infer_type != HOSTED
    is_asked = settings.memory_plan != "off" and has_weights
    if not is_asked or os.environ.get("VLLM_TARGET_DEVICE") == "cpu":
        return None
    machine = machines.here(settings.cuda_visible_devices)
    given = _given(settings)
    if machine is None or given.unclear:
        return None
    try:
        plan = _plan(settings, machine, given.ask, per_proc_gpus)
    except ConfigError as error:
        return f"whether the model fits is not known: {error}"
    except Exception as error:  # a configuration that no planner has seen is no reason not to start
        return f"whether the model fits is not known: the planner failed ({error!r})"
    if not plan.options:
        return plan.why_impossible
    text = _explain(plan)
    verdict = plan.options[0].fit.verdict
    if verdict is Verdict.FITS or (given.ask is WEIGHTS_ALONE and verdict is Verdict.TIGHT):
        return None
    if settings.memory_plan == "warn" or not _is_certain(plan, plan.options[0]):
        return text
    raise ConfigError(f"{text}; --memory_plan warn starts it all the same")


def _given(settings: Settings) -> Given:
    if settings.infer_type == "vllm":
        return read_arguments(settings.engine_args)
    # Any of their own arguments may put weights elsewhere.
    return Given(WEIGHTS_ALONE, unclear=next(iter(settings.engine_args), None))


def _is_certain(plan: Plan, option: Option) -> bool:
    """A family that is counted as another may be smaller than it seems; of different GPUs only
    the smallest were looked at; transformers puts on the CPU what several GPUs do not hold."""
    is_mixed = len({card.total_bytes for card in plan.machine.cards}) > 1
    may_overflow = plan.subject.engine == "transformers" and option.fit.num_gpus > 1
    is_guess = bool(plan.subject.model.doubts) or is_mixed or may_overflow
    return option.fit.verdict is Verdict.FAILS and not is_guess


def _plan(settings: Settings, machine: Machine, ask: Ask, per_proc_gpus: int | None = None) -> Plan:
    is_offline = per_proc_gpus is not None
    subject = read_checkpoint(settings.model_name, ask.dtype, is_offline=is_offline).subject
    if settings.infer_type == "transformers":
        # Its device map puts whole layers on each GPU.
        subject = replace(subject, model=replace(subject.model, is_layered=True))
    subject = replace(subject, engine=settings.infer_type or subject.engine)
    return make_plan(
        subject,
        machine,
        ask,
        per_proc_gpus=per_proc_gpus,
        may_shorten=False,
        measured=measured_overheads(subject.name, machine, ask),
    )


def _explain(plan: Plan) -> str:
    """One line: what does not fit, by how much, and what would help."""
    if not plan.options:
        return plan.why_impossible
    found, card = plan.options[-1].fit, plan.machine.smallest
    may = "may not" if found.verdict is Verdict.TIGHT else "does not"
    text = (
        f"{plan.subject.name!r} {may} fit {found.num_gpus} x {card.name} per worker: of "
        f"{gib(found.budget_bytes)} on each, weights take {gib(found.weights_bytes)}"
    )
    if plan.ask is not WEIGHTS_ALONE:
        text += (
            f", one request of {found.max_model_len} tokens {gib(found.request_bytes)}, the rest "
            f"about {gib(found.overhead_bytes)}"
        )
    helps = "; or ".join(
        f"{r.what} ({r.arguments})" if r.arguments else r.what for r in plan.remedies[:MAX_REMEDIES]
    )
    return f"{text}. What would help: {helps or 'GPUs with more memory'}"
