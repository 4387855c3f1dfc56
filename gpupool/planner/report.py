"""A plan as plain data: the planner's own JSON, and the shape of OCI AQUA's recommendations. Pure.

AQUA's shape: oracle/accelerated-data-science, ads/aqua/shaperecommend/shape_report.py. Its sizes
are in units of 1000^3 bytes and for all GPUs of one replica together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from gpupool.planner.advice import Plan
from gpupool.planner.option import Option
from gpupool.planner.render import engine_arguments, start_line

GB = 1000**3


def as_json(plan: Plan, source: str, bytes_by_type: dict[str, int]) -> dict[str, Any]:
    """Everything the text shows, in bytes per GPU."""
    model, card = plan.subject.model, plan.machine.smallest
    return {
        "model_name": plan.subject.name,
        "source": source,
        "family": model.family,
        "num_parameters": model.num_parameters,
        "dtype": model.dtype,
        "quantization": model.quantization.method if model.quantization else None,
        "stored_bytes": bytes_by_type,
        "max_positions": model.max_positions,
        "doubts": list(plan.doubts),
        "machine": plan.machine.name,
        "num_gpus": len(plan.machine.cards),
        "total_bytes": card.total_bytes,
        "free_bytes": min(found.free_bytes for found in plan.machine.cards),
        "gpu_memory_utilization": plan.ask.gpu_memory_utilization,
        "options": [_option(plan, option) for option in plan.options],
        "refusals": [{"per_proc_gpus": count, "reason": why} for count, why in plan.refusals],
        "throughput": _chosen(plan, plan.throughput),
        "context": _chosen(plan, plan.context),
        "remedies": [
            {
                "what": remedy.what,
                "arguments": remedy.arguments,
                "weights_bytes": remedy.fit.weights_bytes,
                "kv_cache_bytes": max(remedy.fit.kv_bytes, 0),
                "kv_cache_tokens": remedy.fit.num_tokens,
            }
            for remedy in plan.remedies
        ],
    }


def _option(plan: Plan, option: Option) -> dict[str, Any]:
    found = option.fit
    return {
        "per_proc_gpus": found.num_gpus,
        "replicas": option.num_replicas,
        "replicas_now": min(option.num_now, option.num_replicas),
        "spare_gpus": option.num_spare,
        "verdict": found.verdict.value,
        "budget_bytes": found.budget_bytes,
        "weights_bytes": found.weights_bytes,
        "overhead_bytes": found.overhead_bytes,
        "overhead_bytes_estimated": found.estimated.num_bytes,
        "overhead_parts_estimated": asdict(found.estimated),
        "overhead_bytes_measured": found.measured_bytes,
        "kv_cache_bytes": max(found.kv_bytes, 0),
        "kv_cache_bytes_per_token": found.cache.token_bytes,
        "kv_cache_tokens": found.num_tokens,
        "max_model_len": found.max_model_len,
        "longest_max_model_len": found.longest,
        "concurrent_requests": {
            str(length): round(found.num_requests(length), 2)
            for length in sorted({plan.ask.typical_length, found.max_model_len})
        },
        "missing_bytes": found.missing_bytes,
    }


def _chosen(plan: Plan, option: Option | None) -> dict[str, Any] | None:
    if option is None:
        return None
    return {
        "per_proc_gpus": option.fit.num_gpus,
        "replicas": option.num_replicas,
        "max_model_len": option.fit.max_model_len,
        "start": start_line(plan, option),
    }


def as_aqua(plans: Iterable[tuple[str, Plan]]) -> dict[str, Any]:
    """Recommendations for named shapes; those without room are told in `troubleshoot`."""
    reports, troubles, name = [], [], ""
    for shape, plan in plans:
        name = plan.subject.name
        if plan.throughput is None:
            troubles.append(f"{shape}: {_trouble(plan)}")
            continue
        chosen = {id(o): o for o in (plan.throughput, plan.context) if o is not None}
        reports.append(
            {
                "shape_details": {"name": shape, "gpu_specs": _gpu_specs(plan)},
                "configurations": [_configuration(plan, option) for option in chosen.values()],
            }
        )
    return {
        "display_name": name,
        "recommendations": reports,
        "troubleshoot": None if reports else "; ".join(troubles),
    }


def _gpu_specs(plan: Plan) -> dict[str, Any]:
    cards = plan.machine.cards
    return {
        "gpu_memory_in_gbs": round(sum(card.total_bytes for card in cards) / GB),
        "gpu_count": len(cards),
        "gpu_type": plan.machine.smallest.name,
        "quantization": None,
        "ranking": None,
    }


def _configuration(plan: Plan, option: Option) -> dict[str, Any]:
    found, model = option.fit, plan.subject.model
    size, cache = (
        round(part * found.num_gpus / GB, 2) for part in (found.weights_bytes, found.request_bytes)
    )
    engine = plan.subject.engine
    words = engine_arguments(engine, plan.ask, option)
    if engine == "vllm":
        words = ["--tensor-parallel-size", str(found.num_gpus), *words]
    return {
        "model_details": {
            "model_size_gb": size,
            "kv_cache_size_gb": cache,
            "total_model_gb": round(size + cache, 2),
        },
        "deployment_params": {
            "quantization": model.quantization.method if model.quantization else model.dtype,
            "max_model_len": found.max_model_len,
            "batch_size": max(int(found.num_requests(found.max_model_len)), 1),
            "params": " ".join(words),
        },
        "recommendation": (
            f"{option.num_replicas} replica(s) of {found.num_gpus} GPU(s), each with a KV cache "
            f"of {found.num_tokens} tokens. Start: {start_line(plan, option)}"
        ),
    }


def _trouble(plan: Plan) -> str:
    if not plan.options:
        return plan.why_impossible
    found = plan.options[-1].fit
    return f"{found.missing_bytes / GB:.1f} GB are missing on each of {found.num_gpus} GPU(s)"
