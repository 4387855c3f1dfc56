"""What `vllm serve` would be told, for one slice: vLLM's own parser, minus what the pool decides.

Preflight and worker. Imports vLLM only inside functions; building its parser takes seconds, so
that is done once per process.
"""

from __future__ import annotations

import math
from argparse import ArgumentError, Namespace
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NoReturn

from pydantic import ValidationError

from gpupool.errors import ConfigError
from gpupool.nearest import nearest_hint

SIZES = {
    "tensor_parallel_size": "--tensor-parallel-size",
    "pipeline_parallel_size": "--pipeline-parallel-size",
    "prefill_context_parallel_size": "--prefill-context-parallel-size",
    "data_parallel_size": "--data-parallel-size",
}
"""The sizes whose product is the number of GPUs of one engine."""

SERVED = "the pool is the server; it has no such option for its port"
LOGGED = "use --log_level for the pool's log; vLLM serves no port of its own"
ONE_MACHINE = "a worker's engine stays within its slice of this machine"
ALL_ROUTES = "text that is generated or embedded, with a tokenizer, is what the pool serves"

OURS = {
    "model_tag": "use --model_name",
    "model": "use --model_name",
    "host": "use --host",
    "port": "use --port",
    "api_key": "use --api_key",
    "served_model_name": "use --served_model_name",
    "trust_remote_code": "use --trust_remote_code",
    "config": "write the options themselves after --, or engine_args in the file of our --config",
    "api_server_count": "one port in front of all workers is what the pool is",
    **dict.fromkeys(
        (
            "uds", "ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers",
            "enable_ssl_refresh", "root_path", "allow_credentials", "allowed_origins",
            "allowed_methods", "allowed_headers", "h11_max_incomplete_event_size",
            "h11_max_header_count", "grpc", "grpc_port",
        ),
        SERVED,
    ),
    **dict.fromkeys(
        (
            "uvicorn_log_level", "disable_uvicorn_access_log", "disable_access_log_for_endpoints",
        ),
        LOGGED,
    ),
    **dict.fromkeys(
        (
            "headless", "nnodes", "node_rank", "master_addr", "master_port", "device_ids",
            "data_parallel_rank", "data_parallel_start_rank", "data_parallel_size_local",
            "data_parallel_address", "data_parallel_rpc_port", "data_parallel_hybrid_lb",
            "data_parallel_external_lb", "data_parallel_multi_port_external_lb",
            "data_parallel_supervisor_port", "enable_elastic_ep", "elastic_ep_max_dp_size",
        ),
        ONE_MACHINE,
    ),
    **dict.fromkeys(("skip_tokenizer_init", "mm_encoder_only"), ALL_ROUTES),
}  # fmt: skip
"""Arguments that are not for the user to give after --, and what to do instead."""

LIMITED: dict[str, tuple[tuple[str, ...], str]] = {
    "distributed_executor_backend": (("mp", "uni"), ONE_MACHINE),
    "data_parallel_backend": (("mp",), ONE_MACHINE),
    "runner": (("auto", "generate", "pooling"), ALL_ROUTES),
    "logprobs_mode": (("raw_logprobs",), "log-probabilities here are those before temperature"),
}
"""Arguments of which only these values work in a pool, and why."""

MAX_LOGPROBS = 256
"""Room for the two candidates per beam of the widest beam search that the API lets through."""

MAX_CHARS = 600
MIN_KV_CACHE_BYTES = 1 << 30
MAX_KV_CACHE_BYTES = 16 << 30


class _NotGiven:
    """The default of watched arguments: tells `--port 8000` from no --port at all."""

    def __repr__(self) -> str:
        return "not given"


NOT_GIVEN = _NotGiven()


def parse_arguments(
    given: Sequence[str],
    *,
    model_name: str,
    served_names: Sequence[str] = (),
    trust_remote_code: bool,
    num_gpus: int,
) -> Namespace:
    """vLLM's arguments for an engine on `num_gpus` GPUs (0: on the CPU); ConfigError says what
    cannot be, in one line."""
    from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args
    from vllm.exceptions import VLLMError

    parser, defaults = _parser()
    try:
        args: Namespace = parser.parse_args(list(given))
        asked = {name for name in defaults if getattr(args, name) is not NOT_GIVEN}
        for name in defaults.keys() - asked:
            setattr(args, name, defaults[name])
        _refuse(asked, args)
        _set_sizes(asked, args, num_gpus or 1)
        args.model = model_name
        args.served_model_name = list(served_names) or [model_name]
        args.trust_remote_code = trust_remote_code
        if "max_logprobs" not in asked:
            args.max_logprobs = MAX_LOGPROBS
        validate_parsed_serve_args(args)
    except ConfigError:
        raise
    except SystemExit:
        raise ConfigError(
            "vLLM's help is not given after --; run `vllm serve --help=all` instead"
        ) from None
    except (VLLMError, ValueError, TypeError, ArgumentError, OSError) as error:
        raise ConfigError(f"vLLM refuses the arguments after --: {one_line(error)}") from None
    return args


def share_memory(args: Namespace, num_cpus: int) -> None:
    """Give an engine on the CPU its share of the memory that is free now, unless the arguments
    or VLLM_CPU_KVCACHE_SPACE say how much.

    vLLM's own default is nearly all memory of the machine, which the second worker on it, or a
    desktop beside it, cannot have as well.
    """
    import psutil
    from vllm import envs

    _, defaults = _parser()
    if (
        args.kv_cache_memory_bytes is not None
        or args.gpu_memory_utilization != defaults["gpu_memory_utilization"]
        or envs.VLLM_CPU_KVCACHE_SPACE
    ):
        return
    share = num_cpus / (psutil.cpu_count() or num_cpus)
    quarter = int(psutil.virtual_memory().available * share / 4)
    args.kv_cache_memory_bytes = min(max(quarter, MIN_KV_CACHE_BYTES), MAX_KV_CACHE_BYTES)


def one_line(error: BaseException) -> str:
    """A library's message without its line breaks and without pydantic's appendices."""
    text = str(error)
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        text = ": ".join([*map(str, first["loc"]), first["msg"].removeprefix("Value error, ")])
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}..."


@cache
def _parser() -> tuple[Any, dict[str, Any]]:
    """vLLM's parser, its watched arguments defaulting to NOT_GIVEN, and their own defaults."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:
            raise ValueError(message + _hint(message, self._option_string_actions))

    parser = make_arg_parser(Parser(prog="vllm serve"))
    watched = (*OURS, *LIMITED, *SIZES, "max_logprobs", "gpu_memory_utilization")
    defaults = {name: parser.get_default(name) for name in watched}
    parser.set_defaults(**dict.fromkeys(watched, NOT_GIVEN))
    return parser, defaults


def _hint(message: str, options: Iterable[str]) -> str:
    unknown = message.removeprefix("unrecognized arguments: ")
    if unknown == message:
        return ""
    return nearest_hint(unknown.split()[0].partition("=")[0], options)


def _refuse(asked: set[str], args: Namespace) -> None:
    for name, remedy in OURS.items():
        if name in asked:
            raise ConfigError(f"{_flag(name)} after -- is not for vLLM here: {remedy}")
    for name, (allowed, reason) in LIMITED.items():
        value = getattr(args, name)
        if name in asked and value not in allowed:
            raise ConfigError(
                f"{_flag(name)} after -- is {value!r}: {reason}; use {' or '.join(allowed)}"
            )


def _flag(name: str) -> str:
    return "a model name" if name == "model_tag" else f"--{name.replace('_', '-')}"


def _set_sizes(asked: set[str], args: Namespace, num_gpus: int) -> None:
    """Tensor parallelism over the whole slice, unless the arguments cut it themselves."""
    given = [name for name in SIZES if name in asked]
    if not given:
        args.tensor_parallel_size = num_gpus
        return
    product = math.prod(getattr(args, name) for name in SIZES)
    if product != num_gpus:
        shown = " x ".join(f"{SIZES[name]} {getattr(args, name)}" for name in given)
        raise ConfigError(
            f"{shown} after -- makes {product} GPUs for one engine, but --per_proc_gpus "
            f"(PER_PROC_GPUS) gives each worker {num_gpus}; make both the same"
        )
