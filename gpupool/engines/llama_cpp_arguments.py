"""What llama-server would be told, for one slice: the arguments after -- (preflight, worker).

xllamacpp does not expose llama.cpp's own parser, so this is a table from llama-server's flags to
the names of xllamacpp's CommonParams. Imports no engine library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpupool.engines.llama_cpp_uses import RANK
from gpupool.errors import ConfigError
from gpupool.nearest import nearest_hint

Read = Callable[[str], Any]
Params = dict[str, Any]
"""Paths of CommonParams attributes and their values; an enum's member by its name."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag: what it sets, and how its argument is read. Without `read` it takes none."""

    attribute: str
    read: Read | None = None
    value: Any = True


def whole(low: int, high: int = 2**31 - 1) -> Read:
    """An int within limits."""

    def read(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(f"from {low} to {high}")
        return value

    return read


def number(text: str) -> float:
    """A finite float."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a finite number")
    return value


def one_of(**choices: Any) -> Read:
    """One of some words."""

    def read(text: str) -> Any:
        if text.lower() not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return choices[text.lower()]

    return read


def shares(text: str) -> list[float]:
    """Proportions per GPU: 3,1."""
    return [number(part) for part in text.split(",")]


def file_text(text: str) -> str:
    """The content of a file."""
    try:
        return Path(text).expanduser().read_text()
    except OSError as error:
        raise ValueError(f"a readable file ({error.strerror})") from None


def adapter(text: str) -> tuple[str, float]:
    """A LoRA adapter at full strength."""
    if not Path(text).expanduser().is_file():
        raise ValueError("a LoRA adapter's .gguf file")
    return str(Path(text).expanduser()), 1.0


def scaled_adapter(text: str) -> tuple[str, float]:
    """FILE:SCALE."""
    path, _, scale = text.rpartition(":")
    return adapter(path)[0], number(scale)


def num_layers(text: str) -> int:
    """A number of layers, or all of them."""
    return ALL_LAYERS if text.lower() == "all" else whole(0)(text)


ALL_LAYERS = 999
CACHE_TYPES = {
    name: f"GGML_TYPE_{name.upper()}"
    for name in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
}
COUNT = whole(1)
ON_OFF_AUTO = {
    "on": "LLAMA_FLASH_ATTN_TYPE_ENABLED",
    "off": "LLAMA_FLASH_ATTN_TYPE_DISABLED",
    "auto": "LLAMA_FLASH_ATTN_TYPE_AUTO",
}

FLAGS: dict[str, Flag] = {
    "--ctx-size": Flag("n_ctx", whole(16)),
    "--parallel": Flag("n_parallel", whole(1, 256)),
    "--batch-size": Flag("n_batch", COUNT),
    "--ubatch-size": Flag("n_ubatch", COUNT),
    "--threads": Flag("cpuparams.n_threads", COUNT),
    "--threads-batch": Flag("cpuparams_batch.n_threads", COUNT),
    "--poll": Flag("cpuparams.poll", whole(0, 100)),
    "--n-gpu-layers": Flag("n_gpu_layers", num_layers),
    "--split-mode": Flag(
        "split_mode",
        one_of(
            none="LLAMA_SPLIT_MODE_NONE",
            layer="LLAMA_SPLIT_MODE_LAYER",
            row="LLAMA_SPLIT_MODE_ROW",
            tensor="LLAMA_SPLIT_MODE_TENSOR",
        ),
    ),
    "--tensor-split": Flag("tensor_split", shares),
    "--main-gpu": Flag("main_gpu", whole(0)),
    "--flash-attn": Flag("flash_attn_type", one_of(**ON_OFF_AUTO)),
    "--cache-type-k": Flag("cache_type_k", one_of(**CACHE_TYPES)),
    "--cache-type-v": Flag("cache_type_v", one_of(**CACHE_TYPES)),
    "--kv-offload": Flag("no_kv_offload", value=False),
    "--no-kv-offload": Flag("no_kv_offload"),
    "--swa-full": Flag("swa_full"),
    "--override-tensor": Flag("tensor_buft_overrides", str),
    "--no-repack": Flag("no_extra_bufts"),
    "--no-op-offload": Flag("no_op_offload"),
    "--mlock": Flag("load_mode", value="LLAMA_LOAD_MODE_MMAP_MLOCK"),
    "--mmap": Flag("load_mode", value="LLAMA_LOAD_MODE_MMAP"),
    "--no-mmap": Flag("load_mode", value="LLAMA_LOAD_MODE_NONE"),
    "--direct-io": Flag("load_mode", value="LLAMA_LOAD_MODE_DIRECT_IO"),
    "--check-tensors": Flag("check_tensors"),
    "--numa": Flag(
        "numa",
        one_of(
            distribute="GGML_NUMA_STRATEGY_DISTRIBUTE",
            isolate="GGML_NUMA_STRATEGY_ISOLATE",
            numactl="GGML_NUMA_STRATEGY_NUMACTL",
        ),
    ),
    "--rope-scaling": Flag(
        "rope_scaling_type",
        one_of(
            none="LLAMA_ROPE_SCALING_TYPE_NONE",
            linear="LLAMA_ROPE_SCALING_TYPE_LINEAR",
            yarn="LLAMA_ROPE_SCALING_TYPE_YARN",
        ),
    ),
    "--rope-freq-base": Flag("rope_freq_base", number),
    "--rope-freq-scale": Flag("rope_freq_scale", number),
    "--yarn-orig-ctx": Flag("yarn_orig_ctx", whole(0)),
    "--yarn-ext-factor": Flag("yarn_ext_factor", number),
    "--yarn-attn-factor": Flag("yarn_attn_factor", number),
    "--yarn-beta-slow": Flag("yarn_beta_slow", number),
    "--yarn-beta-fast": Flag("yarn_beta_fast", number),
    "--lora": Flag("lora_adapters", adapter),
    "--lora-scaled": Flag("lora_adapters", scaled_adapter),
    "--embedding": Flag("embedding"),
    "--pooling": Flag(
        "pooling_type",
        one_of(
            none="LLAMA_POOLING_TYPE_NONE",
            mean="LLAMA_POOLING_TYPE_MEAN",
            cls="LLAMA_POOLING_TYPE_CLS",
            last="LLAMA_POOLING_TYPE_LAST",
            rank=RANK,
        ),
    ),
    "--reranking": Flag("pooling_type", value=RANK),
    "--jinja": Flag("use_jinja"),
    "--no-jinja": Flag("use_jinja", value=False),
    "--chat-template": Flag("chat_template", str),
    "--chat-template-file": Flag("chat_template", file_text),
    "--reasoning-format": Flag(
        "reasoning_format",
        one_of(
            none="COMMON_REASONING_FORMAT_NONE",
            auto="COMMON_REASONING_FORMAT_AUTO",
            deepseek="COMMON_REASONING_FORMAT_DEEPSEEK",
        ),
    ),
    "--no-warmup": Flag("warmup", value=False),
    "--log-verbosity": Flag("verbosity", whole(0, 5)),
}

ALIASES = {
    "-c": "--ctx-size",
    "-np": "--parallel",
    "-b": "--batch-size",
    "-ub": "--ubatch-size",
    "-t": "--threads",
    "-tb": "--threads-batch",
    "-ngl": "--n-gpu-layers",
    "--gpu-layers": "--n-gpu-layers",
    "-sm": "--split-mode",
    "-ts": "--tensor-split",
    "-mg": "--main-gpu",
    "-fa": "--flash-attn",
    "-ctk": "--cache-type-k",
    "-ctv": "--cache-type-v",
    "-kvo": "--kv-offload",
    "-nkvo": "--no-kv-offload",
    "-ot": "--override-tensor",
    "-nr": "--no-repack",
    "--embeddings": "--embedding",
    "--rerank": "--reranking",
    "-lv": "--log-verbosity",
    "--verbosity": "--log-verbosity",
}

SAMPLED = "send it with each request; a request says everything about its sampling"
OURS = {
    "--host": "use --host",
    "--port": "use --port",
    "--api-key": "use --api_key",
    "--api-key-file": "use --api_key",
    "--model": "use --model_name",
    "-m": "use --model_name",
    "--hf-repo": "use --model_name with a local file",
    "-hf": "use --model_name with a local file",
    "--model-url": "use --model_name with a local file",
    "--device": "the slice's GPUs are the only ones it sees; use --cuda_visible_devices",
    "--alias": "the model is served under its --model_name",
    "--ssl-key-file": "the pool is the server; it has no such option for its port",
    "--ssl-cert-file": "the pool is the server; it has no such option for its port",
    "--threads-http": "use --threads",
    "--kv-unified": "every slot has its own part of the context here, so that none can starve "
    "another",
    **dict.fromkeys(("--temp", "--top-k", "--top-p", "--min-p", "--seed", "--samplers"), SAMPLED),
}
"""Arguments that are not for the user to give after --, and what to do instead."""


def parse_engine_args(args: Sequence[str]) -> Params:
    """What the arguments set; ConfigError names the first that cannot be."""
    params: Params = {}
    left = list(args)
    while left:
        name, has_value, text = left.pop(0).partition("=")
        flag = _find_flag(name)
        if flag.read is None:
            if has_value:
                raise ConfigError(f"engine argument {name!r} takes no value, not {text!r}")
            params[flag.attribute] = flag.value
            continue
        if not has_value:
            if not left:
                raise ConfigError(f"engine argument {name!r} needs a value")
            text = left.pop(0)
        value = _read_value(name, flag.read, text)
        if flag.attribute == "lora_adapters":
            params.setdefault("lora_adapters", []).append(value)
        else:
            params[flag.attribute] = value
    return params


def _find_flag(name: str) -> Flag:
    if name in OURS:
        raise ConfigError(f"engine argument {name!r} is the pool's: {OURS[name]}")
    flag = FLAGS.get(ALIASES.get(name, name))
    if flag is None:
        known = [*FLAGS, *ALIASES, *OURS]
        raise ConfigError(
            f"engine argument {name!r} is not one that llama_cpp takes{nearest_hint(name, known)}; "
            "they are llama-server's, without those of its port and its sampling"
        )
    return flag


def _read_value(name: str, read: Read, text: str) -> Any:
    try:
        return read(text)
    except ValueError as error:
        reason = str(error)
        # int() and float() explain themselves in Python's words.
        wanted = (
            "a number" if "could not convert" in reason or "invalid literal" in reason else reason
        )
        raise ConfigError(f"engine argument {name} is {text!r}; it must be {wanted}") from None
