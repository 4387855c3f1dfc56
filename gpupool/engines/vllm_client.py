"""vLLM's own async client, as its server makes it, and what it knows of the model (worker).

Imports vLLM only inside functions.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from gpupool.engines.base import ModelInfo


def read_config(args: Namespace) -> Any:
    """vLLM's whole configuration; reads the model's, and starts nothing."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import propagate_flash_late_interaction
    from vllm.usage.usage_lib import UsageContext

    engine_args = AsyncEngineArgs.from_cli_args(args)
    propagate_flash_late_interaction(args, engine_args)
    return engine_args.create_engine_config(UsageContext.OPENAI_API_SERVER)


async def start_client(args: Namespace, config: Any, on_step: Callable[[], None]) -> Any:
    """vLLM's build_async_engine_client, with a stat logger, which that one does not take.

    Blocks the event loop until vLLM's processes have loaded the model; raises if they cannot.
    `on_step` is called on the loop for every step of vLLM's scheduler.
    """
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    client = AsyncLLM.from_vllm_config(
        config,
        usage_context=UsageContext.OPENAI_API_SERVER,
        stat_loggers=[_progress_logger(on_step)],
        enable_log_requests=args.enable_log_requests,
        aggregate_engine_logging=args.aggregate_engine_logging,
        disable_log_stats=args.disable_log_stats,
    )
    await client.reset_mm_cache()
    return client


async def describe(client: Any, name: str) -> ModelInfo:
    """The model as vLLM serves it, after it has fitted lengths to the memory there is."""
    config = client.vllm_config
    replicas = config.parallel_config.data_parallel_size
    return ModelInfo(
        name=name,
        context_tokens=config.model_config.max_model_len,
        vocab_size=config.model_config.get_vocab_size(),
        slots=config.scheduler_config.max_num_seqs * replicas,
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        generates="generate" in await client.get_supported_tasks(),
        kv_cache_tokens=config.cache_config.kv_cache_size_tokens,
    )


def _progress_logger(on_step: Callable[[], None]) -> Any:
    from vllm.v1.metrics.loggers import StatLoggerBase

    class ProgressLogger(StatLoggerBase):  # type: ignore[misc]
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            """vLLM makes one per engine core."""

        def record(self, *args: Any, **kwargs: Any) -> None:
            on_step()

        def log_engine_initialized(self) -> None:
            """Nothing to say."""

    return ProgressLogger
