"""Arguments of llama.cpp by its predecessors' names: vLLM's as FlagScale maps them, and those of
llama-cpp-python as byzerllm passes them (pure; the import command)."""

from __future__ import annotations

import json
from typing import Any

from gpupool.engines.llama_cpp_arguments import FLAGS
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
    text,
    truth,
    whole,
)
from gpupool.migrate.vllm_args import PROXY, level, take_quiet
from gpupool.nearest import nearest_hint

OF_VLLM = "llama.cpp has no such option; leave it out"
SAMPLED = "send it with each request; a request says everything about its sampling"
TEMPLATE = "the model's own chat template is used; give another by --chat-template-file FILE"
VLLM_CACHES = {"fp8": "q8_0", "fp8_e4m3": "q8_0", "fp8_e5m2": "q8_0"}
SPLITS = {"0": "none", "1": "layer", "2": "row"}
"""llama-cpp-python's numbers."""
PARALLEL = "--parallel"
MAX_SLOTS, TOKENS_OF_ALL = 8, 32768
"""Requests at the same time, where nothing says how many; fewer where each may be long."""


def context_words(context: int, slots: int | None = None) -> list[str]:
    """What gives every request so many tokens: llama.cpp divides its context among its slots."""
    num_slots = slots or max(1, min(MAX_SLOTS, TOKENS_OF_ALL // max(1, context)))
    return ["--ctx-size", str(context * num_slots), PARALLEL, str(num_slots)]


def settle_context(draft: Draft) -> None:
    """The context of each request, once it is known how many run at the same time."""
    if draft.context is None:
        return
    if "--ctx-size" in draft.words:
        draft.refusals.append("--ctx-size is given already by another key; say it once")
        return
    slots = None
    if PARALLEL in draft.words:
        at = draft.words.index(PARALLEL)
        try:
            slots = whole(draft.words[at + 1])
        except Refused as refusal:
            draft.refusals.append(f"{PARALLEL}: {refusal}")
        del draft.words[at : at + 2]
    draft.words = [*context_words(draft.context, slots), *draft.words]


def _take_context(draft: Draft, value: Any) -> None:
    """1K and 1k, as FlagScale reads them: 1024 and 1000."""
    number, unit = str(value).rstrip("kK"), str(value)[-1:]
    factor = {"k": 1000, "K": 1024}.get(unit, 1)
    draft.context = whole(number) * factor


def _take_cache_type(draft: Draft, value: Any) -> None:
    kind = VLLM_CACHES.get(str(value), str(value))
    draft.add("--cache-type-k", kind)
    draft.add("--cache-type-v", kind)


def _take_rope(draft: Draft, value: Any) -> None:
    try:
        found = json.loads(value) if isinstance(value, str) else dict(value)
        kind, factor = found["rope_type"], float(found["factor"])
    except (ValueError, KeyError, TypeError):
        raise Refused("give rope_type and factor, as JSON") from None
    draft.add("--rope-scaling", kind)
    draft.add("--rope-freq-scale", f"{1 / factor:g}")


def _take_reasoning(draft: Draft, value: Any) -> None:
    if str(value).lower().replace("-", "").replace("_", "") not in ("deepseek", "deepseekr1"):
        raise Refused("llama.cpp knows DeepSeek's way of reasoning alone; leave it out")
    draft.add("--reasoning-format", "deepseek")


def _take_split(draft: Draft, value: Any) -> None:
    draft.add("--split-mode", SPLITS.get(str(value), str(value)))


def _take_shares(draft: Draft, value: Any) -> None:
    draft.add("--tensor-split", text(value))


def _take_chat_format(draft: Draft, value: Any) -> None:
    if value != "chatml":
        raise Refused(TEMPLATE)
    draft.add("--chat-template", value)


def _switch(flag: str, *, on: bool = True, word: str = "") -> Any:
    """Adds a flag when the switch stands this way."""

    def take(draft: Draft, value: Any) -> None:
        if truth(value) is on:
            draft.add(flag, word or True)

    return take


def take_other(draft: Draft, pair: tuple[str, Any]) -> None:
    """llama-server's own names, as far as the engine has them."""
    name, value = pair
    flag = f"--{name.replace('_', '-')}"
    if flag not in FLAGS:
        raise Refused(f"llama_cpp has no {flag}{nearest_hint(flag, FLAGS)}; leave it out")
    if FLAGS[flag].read is None:
        value = truth(value)
    draft.add(flag, value)


KEYS: tuple[Key, ...] = (
    sets("model", "/models/m.gguf", "model_name"),
    sets("host", "0.0.0.0", "host"),
    sets("port", 8000, "port", whole),
    sets("api_key", "secret", "api_key", names, ["secret"]),
    sets("served_model_name", "m", "served_model_name", names, ["m"]),
    sets("alias", "m", "served_model_name", names, ["m"]),
    sets("uvicorn_log_level", "warning", "log_level", level),
    sizes("tensor_parallel_size", 2, "tensor", {"per_proc_gpus": 2}),
    Key("max_model_len", "8K", _take_context, {ENGINE_ARGS: context_words(8192)}),
    passes("max_num_seqs", 4, "--parallel"),
    Key(
        "kv_cache_dtype",
        "fp8",
        _take_cache_type,
        {ENGINE_ARGS: ["--cache-type-k", "q8_0", "--cache-type-v", "q8_0"]},
    ),
    Key(
        "rope_scaling",
        '{"rope_type": "yarn", "factor": 4}',
        _take_rope,
        {ENGINE_ARGS: ["--rope-scaling", "yarn", "--rope-freq-scale", "0.25"]},
    ),
    passes("rope_theta", 10000, "--rope-freq-base"),
    Key(
        "reasoning_parser",
        "deepseek_r1",
        _take_reasoning,
        {ENGINE_ARGS: ["--reasoning-format", "deepseek"]},
    ),
    needless("trust_remote_code", True, "a GGUF file brings no code with it"),
    Key("disable_uvicorn_access_log", True, take_quiet, {"access_log": "off"}),
    needless("show_hidden_metrics_for_version", "0.11", "/metrics has all there are"),
    refuses("seed", 42, SAMPLED),
    refuses("gpu_memory_utilization", 0.9, f"{OF_VLLM}: it takes what model and context need"),
    refuses("pipeline_parallel_size", 2, f"{OF_VLLM}: --split-mode layer is its way", [1]),
    refuses("enforce_eager", True, OF_VLLM, [False]),
    refuses("enable_chunked_prefill", True, OF_VLLM, [False]),
    refuses("ssl_keyfile", "/etc/tls.key", PROXY),
    refuses("ssl_certfile", "/etc/tls.pem", PROXY),
    Key("*", ("threads", 4), take_other, {ENGINE_ARGS: ["--threads", "4"]}),
)
"""What FlagScale gives to llama.cpp."""

OF_PYTHON: tuple[Key, ...] = (
    passes("n_gpu_layers", 35, "--n-gpu-layers"),
    Key("n_ctx", 4096, _take_context, {ENGINE_ARGS: context_words(4096)}),
    passes("n_batch", 512, "--batch-size"),
    passes("n_threads", 8, "--threads"),
    Key("split_mode", 1, _take_split, {ENGINE_ARGS: ["--split-mode", "layer"]}),
    passes("main_gpu", 0, "--main-gpu"),
    Key("tensor_split", "3,1", _take_shares, {ENGINE_ARGS: ["--tensor-split", "3,1"]}),
    passes("rope_freq_base", 10000, "--rope-freq-base"),
    passes("rope_freq_scale", 0.5, "--rope-freq-scale"),
    passes("lora_path", "/models/lora.gguf", "--lora"),
    Key("use_mlock", True, _switch("--mlock"), {ENGINE_ARGS: ["--mlock"]}),
    Key("use_mmap", False, _switch("--no-mmap", on=False), {ENGINE_ARGS: ["--no-mmap"]}),
    Key("embedding", True, _switch("--embedding"), {ENGINE_ARGS: ["--embedding"]}),
    Key(
        "flash_attn",
        True,
        _switch("--flash-attn", word="on"),
        {ENGINE_ARGS: ["--flash-attn", "on"]},
    ),
    Key(
        "verbose",
        True,
        _switch("--log-verbosity", word="1"),
        {ENGINE_ARGS: ["--log-verbosity", "1"]},
    ),
    Key("chat_format", "chatml", _take_chat_format, {ENGINE_ARGS: ["--chat-template", "chatml"]}),
    refuses("seed", 42, SAMPLED),
)
"""What byzerllm gives to llama-cpp-python."""
