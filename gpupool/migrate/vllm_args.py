"""Arguments of `vllm serve`, by whichever predecessor they come (pure; the import command).

Written with underscores, with hyphens or as words of a command line. What vLLM has dropped since
is refused here with what replaced it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from gpupool.migrate.keys import (
    ENGINE_ARGS,
    Draft,
    Key,
    Refused,
    names,
    needless,
    passes,
    refuses,
    sets,
    sizes,
    truth,
    whole,
)

SHORT = {
    "tp": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "dp": "data_parallel_size",
    "q": "quantization",
}
PROXY = "the pool speaks plain HTTP; put nginx in front of it for TLS and prefixes"
NO_RAY = "an engine stays on its slice of this machine, by processes; no Ray is needed"
SWAP = "vLLM has no swapping any more; what does not fit its KV cache waits or is computed again"


def level(value: Any) -> str:
    """uvicorn's log level as ours."""
    return "debug" if str(value).lower() == "trace" else str(value).lower()


def take_quiet(draft: Draft, value: Any) -> None:
    """No line for each request."""
    if truth(value):
        draft.set("access_log", "off")


def _take_device(draft: Draft, value: Any) -> None:
    if value == "cpu":
        draft.set("cuda_visible_devices", "")
    elif value not in ("cuda", "auto", "gpu"):
        raise Refused("a pool runs on NVIDIA GPUs, or on the CPU")


def _take_executor(draft: Draft, value: Any) -> None:
    if value not in ("mp", "uni"):
        raise Refused(f"{NO_RAY}; leave it out, or use mp")
    draft.add("--distributed-executor-backend", value)


def take_other(draft: Draft, pair: tuple[str, Any]) -> None:
    """Any other argument goes to vLLM as it is; its own parser judges it when the pool starts."""
    name, value = pair
    if isinstance(value, dict):
        value = json.dumps(value)
    draft.add(f"--{name.replace('_', '-')}", value)


PASSED: tuple[tuple[str, Any], ...] = (
    ("gpu_memory_utilization", 0.9),
    ("max_model_len", 32768),
    ("max_num_seqs", 256),
    ("max_num_batched_tokens", 2048),
    ("block_size", 16),
    ("enforce_eager", True),
    ("enable_chunked_prefill", True),
    ("quantization", "awq"),
    ("kv_cache_dtype", "fp8"),
    ("dtype", "bfloat16"),
    ("seed", 42),
    ("chat_template", "/models/chat.jinja"),
    ("reasoning_parser", "deepseek_r1"),
    ("show_hidden_metrics_for_version", "0.11"),
)

KEYS: tuple[Key, ...] = (
    sets("model", "/models/m", "model_name"),
    sets("model_tag", "/models/m", "model_name"),
    sets("host", "0.0.0.0", "host"),
    sets("port", 8000, "port", whole),
    sets("api_key", "secret", "api_key", names, ["secret"]),
    sets("served_model_name", "m", "served_model_name", names, ["m"]),
    sets("trust_remote_code", True, "trust_remote_code", truth),
    sizes("tensor_parallel_size", 2, "tensor", {"per_proc_gpus": 2}),
    sizes(
        "pipeline_parallel_size",
        2,
        "pipeline",
        {
            "per_proc_gpus": 2,
            ENGINE_ARGS: ["--tensor-parallel-size", "1", "--pipeline-parallel-size", "2"],
        },
    ),
    sets("data_parallel_size", 4, "workers", whole),
    sets("uvicorn_log_level", "trace", "log_level", level, "debug"),
    sets("allowed_origins", ["https://a.example"], "cors_origin", names),
    Key("device", "cpu", _take_device, {"cuda_visible_devices": ""}),
    *(passes(name, example, f"--{name.replace('_', '-')}") for name, example in PASSED),
    Key(
        "distributed_executor_backend",
        "ray",
        _take_executor,
        refuses=f"{NO_RAY}; leave it out, or use mp",
    ),
    needless("worker_use_ray", True, NO_RAY),
    needless("engine_use_ray", True, NO_RAY),
    needless("disable_log_stats", True, "the pool has statistics of its own, at /metrics"),
    needless("disable_log_requests", True, "prompts are never logged"),
    Key("disable_uvicorn_access_log", True, take_quiet, {"access_log": "off"}),
    needless("disable_frontend_multiprocessing", True, "the worker is the frontend"),
    needless("allowed_methods", ["*"], "a page that is named by cors_origin may use all of them"),
    needless("allowed_headers", ["*"], "a page that is named by cors_origin may send all of them"),
    refuses(
        "allow_credentials", True, "browsers send a key in a header here, never cookies", [False]
    ),
    *(
        refuses(name, "/etc/tls.pem", PROXY)
        for name in ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "root_path")
    ),
    refuses("swap_space", 4, SWAP, [0]),
    refuses("num_scheduler_steps", 8, "vLLM schedules ahead by itself now; leave it out", [1]),
    refuses("use_v2_block_manager", True, "it is the only one now; leave it out"),
    refuses("guided_decoding_backend", "outlines", "use --structured-outputs-config.backend"),
    refuses("speculative_model", "/models/draft", "use --speculative-config with JSON"),
    refuses("config", "vllm.yaml", "write its keys where this one stands"),
    Key(
        "*",
        ("max_logprobs", 20),
        take_other,
        {ENGINE_ARGS: ["--max-logprobs", "20"]},
    ),
)


def read_words(words: Sequence[str]) -> dict[str, Any]:
    """The words of a command line as names and values; a model without a flag is `model`."""
    values: dict[str, Any] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("-"):
            values.setdefault("model", word)
            continue
        name, has_value, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        given = [value] if has_value else []
        while not has_value and left and not _is_flag(left[0]):
            given.append(left.pop(0))
        parsed: Any = given[0] if len(given) == 1 else given or True
        values[SHORT.get(name, name)] = parsed
    return values


def _is_flag(word: str) -> bool:
    """-1 is a value."""
    return word.startswith("-") and not word[1:].replace(".", "").isdigit()


def normalized(values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Names with underscores; {"tensor-parallel-size": 2} is the same argument."""
    return {str(name).replace("-", "_"): value for name, value in values}
