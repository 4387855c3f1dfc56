"""How large the cache and a step of the batch are, from the model and the machine (worker)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gpupool.engines.transformers_args import TransformersArgs
from gpupool.partition import Slice

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

PAGE_TOKENS = 256

GPU_SLOTS = 256
GPU_STEP_TOKENS = 8192

CPU_SLOTS = 64
CPU_STEP_TOKENS = 256
"""Bounds how much of the prompts one step reads. 32 sequences, prompts of 256 tokens, 48 tokens
each, demo model, bfloat16, two busy cores: 64 gave 35 tok/s, 128 45, 256 60, 512 62; more also
means that running sequences wait longer for a step."""
CPU_CACHE_BLOCKS = 128
CPU_MEMORY_SHARE = 0.25
MIN_BLOCKS = 4


def make_config(
    args: TransformersArgs, model: PreTrainedModel, gpu_slice: Slice
) -> ContinuousBatchingConfig:
    """transformers' settings of the batch; what the arguments leave open is chosen here."""
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    is_gpu = bool(gpu_slice.gpus)
    num_blocks = args.num_blocks
    if num_blocks is None and not is_gpu:
        num_blocks = _cpu_blocks(model, gpu_slice)
    return ContinuousBatchingConfig(
        page_size=PAGE_TOKENS,
        num_blocks=num_blocks,
        max_batch_tokens=args.max_batch_tokens or (GPU_STEP_TOKENS if is_gpu else CPU_STEP_TOKENS),
        max_requests_per_batch=args.max_num_seqs or (GPU_SLOTS if is_gpu else CPU_SLOTS),
        max_memory_percent=args.cache_memory_fraction,
        # The fast decode path reads the cache inside a kernel, which cannot cross GPUs.
        max_blocks_per_request=0 if len(gpu_slice.gpus) > 1 else None,
        auto_switch_to_flash=is_gpu and args.attn_implementation == "auto",
        # Our sampling reads the tokens of the step before on the host. A CUDA graph would replay
        # the first step's sampling for ever, and the asynchronous mode runs a step ahead of it.
        use_cuda_graph=False,
        use_async_batching=False,
    )


def _cpu_blocks(model: PreTrainedModel, gpu_slice: Slice) -> int:
    """As many as usual, but within a part of the slice's share of the free memory: transformers
    would take most of the machine's."""
    share = (len(gpu_slice.cpus) or 1) / (os.cpu_count() or 1)
    budget = available_bytes() * CPU_MEMORY_SHARE * min(share, 1.0)
    return max(MIN_BLOCKS, min(CPU_CACHE_BLOCKS, int(budget) // _block_bytes(model)))


def _block_bytes(model: PreTrainedModel) -> int:
    """Keys and values of one page of tokens, in all layers."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = 2 * int(heads) * int(width) * int(config.num_hidden_layers) * PAGE_TOKENS
    return numbers * int(model.dtype.itemsize)


def available_bytes() -> int:
    """Memory that programs may still take, by the kernel's estimate (proc(5), MemAvailable)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
