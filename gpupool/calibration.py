"""What a load has shown of the overhead: kept per model, GPU and batch sizes for the next plan.

Written by a worker after its load, read by preflight and `gpupool plan`. Best effort throughout.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any

from gpupool import kept
from gpupool.engines.base import ModelInfo
from gpupool.partition import Slice
from gpupool.planner.arguments import read_arguments
from gpupool.planner.checkpoint import read_checkpoint
from gpupool.planner.fit import Ask, Fit, fit, with_defaults
from gpupool.planner.machine import of_gpus
from gpupool.planner.option import Machine
from gpupool.settings import Settings

log = logging.getLogger(__name__)

KIND = "memory"


def remember(settings: Settings, gpu_slice: Slice, model: ModelInfo) -> None:
    """Keep what this load has taken: what is neither weights nor KV cache, per GPU."""
    if not gpu_slice.gpus or model.kv_cache_tokens is None:
        return
    given = read_arguments(settings.engine_args)
    if given.unclear or given.ask.quantization:
        return
    machine = of_gpus(list(gpu_slice.gpus))
    try:
        found = read_checkpoint(settings.model_name, given.ask.dtype, is_offline=True).subject
        num_gpus = len(gpu_slice.gpus)
        planned = fit(found.model, machine.smallest, num_gpus, given.ask, stored=found.stored)
        overhead = measured_overhead(planned, model.kv_cache_tokens, model.context_tokens)
        key = key_of(settings.model_name, machine, num_gpus, given.ask)
        if 0 < overhead < planned.budget_bytes:
            kept.replace(kept.path_of(KIND, key), json.dumps({"load": key, "bytes": overhead}))
    except Exception as error:  # a load that has succeeded must not fail for this
        log.debug("the memory of the load is not kept: %s", error)


def measured_overhead(planned: Fit, kv_cache_tokens: int, length: int) -> int:
    """What the engine did not give to its KV cache, less the weights."""
    cache = int(kv_cache_tokens / length * planned.cache.bytes_per_request(length))
    return planned.budget_bytes - planned.weights_bytes - cache


def measured_overheads(model_name: str, machine: Machine, ask: Ask) -> dict[int, int]:
    """The overhead per GPU by the number of GPUs of a worker, as far as loads have shown it."""
    found: dict[int, int] = {}
    for num_gpus in range(1, len(machine.cards) + 1):
        key = key_of(model_name, machine, num_gpus, ask)
        try:
            text = json.loads(kept.path_of(KIND, key).read_bytes())
            if text["load"] == key and text["bytes"] > 0:
                found[num_gpus] = int(text["bytes"])
        except (OSError, RuntimeError, ValueError, TypeError, KeyError):
            continue
    return found


def key_of(model_name: str, machine: Machine, num_gpus: int, ask: Ask) -> dict[str, Any]:
    """What loads with the same overhead have in common."""
    ask, card = with_defaults(ask, machine.smallest), machine.smallest
    if os.path.exists(model_name):
        model_name = os.path.realpath(model_name)
    return {
        "model": model_name,
        "device": card.name,
        "total_bytes": card.total_bytes,
        "num_gpus": num_gpus,
        "dtype": ask.dtype,
        "max_num_seqs": ask.max_num_seqs,
        "max_num_batched_tokens": ask.max_num_batched_tokens,
        "is_eager": ask.is_eager,
        "gpu_memory_utilization": ask.gpu_memory_utilization,
    }
