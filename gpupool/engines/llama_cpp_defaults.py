"""How llama.cpp is started for one slice where the arguments after -- say nothing (pure).

llama.cpp divides its context among its slots; here a slot is given CONTEXT_PER_SLOT tokens, or
as many as the model knows, and the slots are as many as the slice's memory holds. A context that is
given is divided among so many slots that each has that much, and is one slot's if it is less.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from gpupool.engines.llama_cpp_arguments import ALL_LAYERS, Params
from gpupool.engines.llama_cpp_uses import RANK
from gpupool.gguf_file import GgufModel
from gpupool.partition import Slice

CONTEXT_PER_SLOT = 4096
CPU_SLOTS, GPU_SLOTS = 8, 32
CPU_BATCH, GPU_BATCH = 32, 512
"""Prompt tokens per step. llama.cpp learns that a client has left when it tells of a step, and has
begun the next one by then, so a cancelled request ends with that one. On a CPU a prompt takes as
long in steps of 32 as in steps of 128."""
USED_SHARE = 0.85  # of a GPU's memory; the rest is for compute buffers and CUDA itself
MAX_GPU_THREADS = 8
BYTES_PER_VALUE = 2  # of the cache: f16


def make_params(given: Mapping[str, Any], model: GgufModel, gpu_slice: Slice) -> Params:
    """Everything that is not left to llama.cpp's own defaults; what is given wins."""
    on_gpu = bool(gpu_slice.gpus)
    known = model.value("context_length", CONTEXT_PER_SLOT)
    per_slot = min(known, CONTEXT_PER_SLOT)
    context = given.get("n_ctx")
    if (slots := given.get("n_parallel")) is None:
        most = GPU_SLOTS if on_gpu else CPU_SLOTS
        fitting = _num_slots(model, gpu_slice, per_slot) if context is None else context // per_slot
        slots = max(1, min(most, fitting))
    if context is None:
        context = slots * per_slot
    threads = len(gpu_slice.cpus) or len(os.sched_getaffinity(0))
    if on_gpu:
        threads = min(threads, MAX_GPU_THREADS)
    batch = GPU_BATCH if on_gpu else CPU_BATCH
    is_pooled = bool(given.get("embedding")) or given.get("pooling_type") == RANK
    if is_pooled:
        # llama.cpp computes the vector of a text in one step or not at all.
        batch = max(batch, context // slots)
    defaults = {
        "n_gpu_layers": ALL_LAYERS if on_gpu else 0,
        "cpuparams.n_threads": threads,
        "cpuparams_batch.n_threads": given.get("cpuparams.n_threads", threads),
        "n_batch": batch,
        "n_ubatch": min(given.get("n_batch", batch), batch),
        "embedding": is_pooled,
        # Fitting would move layers to the CPU unasked; too little memory is an error here.
        "fit_params": False,
        # A copy of each idle prompt in main memory would cost time at every change of a slot.
        "cache_ram_mib": 0,
        "cache_idle_slots": False,
        "verbosity": 1,  # errors; its warnings tell of every reused prompt
        "ui": False,
        "endpoint_slots": False,
        "cors_origins": "",
        # A thread for each sequence, for each request that is passed on, and some to spare.
        "n_threads_http": 2 * slots + 16,
    }
    return {**defaults, **given, "n_ctx": context, "n_parallel": slots}


def _num_slots(model: GgufModel, gpu_slice: Slice, context: int) -> int:
    """As many as the memory has room for, which may be none."""
    if not gpu_slice.gpus:
        return CPU_SLOTS
    memory = sum(gpu.total_bytes for gpu in gpu_slice.gpus)
    left = int(memory * USED_SHARE) - model.num_bytes
    return left // max(1, context * cache_bytes_per_token(model))


def cache_bytes_per_token(model: GgufModel) -> int:
    """Size of one token's keys and values over all layers; an upper bound for models that do
    not keep all of them."""
    heads = model.value("attention.head_count", 1)
    kv_heads = model.value("attention.head_count_kv", heads)
    width = model.value("embedding_length", 0) // max(1, heads)
    keys = model.value("attention.key_length", width)
    values = model.value("attention.value_length", width)
    return model.value("block_count", 1) * kv_heads * (keys + values) * BYTES_PER_VALUE
