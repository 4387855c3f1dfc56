"""The flags of byzerllm's commands, and its variables and methods (pure; the import command)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from gpupool.engines.saas_args import PREFIX, parse_engine_args
from gpupool.errors import ConfigError
from gpupool.migrate.keys import (
    Draft,
    Key,
    Refused,
    Take,
    also_refuses,
    names,
    needless,
    refuses,
    sets,
    text,
    whole,
)
from gpupool.migrate.vllm_args import PROXY, level
from gpupool.setting_types import HOSTED

NO_RAY = "a pool is processes of this machine; start it there, without a Ray cluster"
NO_ADDRESS = (
    "it names no address: write a pool with infer_type saas, and give it --saas.base_url or the "
    "vendor (docs/saas.md)"
)
NOT_HOSTED = "it is for --pretrained_model_type saas/VENDOR; give that too"
NO_VENDOR = (
    "its own protocol is not spoken here: write saas/openai and give saas.base_url, if it has an "
    "address that speaks OpenAI's API"
)
VENDORS = {
    "aws_bedrock": "bedrock",
    "azure_openai": "azure",
    "claude": "anthropic",
    "gemini": "gemini",
    "official_openai": "openai",
    "openai": None,
}
"""Of byzerllm's kinds of hosts: litellm's name; None: an address that speaks OpenAI's API."""
PLAIN_NAME = re.compile(r"\w[\w.-]*")
KEY_FILE = "saas.key"
KEY_LINE = "install -m 600 /dev/stdin {}  # type what saas.api_key was, and Ctrl-D"
FRACTION = (
    "a GPU belongs to one worker at a time; cut it with MIG, or give 1: a worker batches all "
    "requests that come at once"
)
DEEPSPEED = "DeepSpeed is no engine here; vllm serves the same models, over several GPUs too"
OWN_TYPE = "the engine sees by itself what kind of model it is"
TEMPLATE = "the chat template is the model's own; give the engine another by --chat-template"
ROLE = "answers have the role assistant, as OpenAI's"
CONCURRENCY = {
    "vllm": "--max-num-seqs",
    "transformers": "--max-num-seqs",
    "llama_cpp": "--parallel",
    "saas": "--saas.max_parallel",
}
NO_SPEECH = "a pool generates text; speech is not decoded"
NO_STORE = "a store of vectors is none of a pool's; /v1/embeddings makes the vectors for one"


def _take_backend(draft: Draft, value: Any) -> None:
    name = str(value).lower().removeprefix("ray/")
    if name == "deepspeed":
        raise Refused(DEEPSPEED)
    if name not in CONCURRENCY or name == HOSTED:
        raise Refused("the engines are vllm, transformers and llama_cpp")
    draft.set("infer_type", name)


def _take_gpus(draft: Draft, value: Any) -> None:
    try:
        draft.sizes["gpus"] = whole(value)
    except Refused:
        raise Refused(FRACTION) from None


def _take_concurrency(draft: Draft, value: Any) -> None:
    """The reader takes it last, when the engine is known."""
    draft.add(CONCURRENCY[draft.engine], whole(value))


def _take_kind(draft: Draft, value: Any) -> None:
    family, _, vendor = str(value).partition("/")
    if family == HOSTED:
        if vendor not in VENDORS:
            raise Refused(NO_VENDOR)
        draft.set("infer_type", HOSTED)
        if (name := VENDORS[vendor]) is not None:
            draft.add("--saas.api_type", name)
        return
    draft.notes.append(f"--pretrained_model_type {value}: {OWN_TYPE}")


def _take_hosted(flag: str, read: Callable[[Any], Any] = text) -> Take:
    """An argument of a hosted model, and only of one."""

    def take(draft: Draft, value: Any) -> None:
        if draft.engine != HOSTED:
            raise Refused(NOT_HOSTED)
        draft.add(flag, read(value))

    return take


def _take_key(draft: Draft, value: Any) -> None:
    """A key is written into no file of settings."""
    if draft.engine != HOSTED:
        raise Refused(NOT_HOSTED)
    file = f"{draft.name}.key" if PLAIN_NAME.fullmatch(draft.name) else KEY_FILE
    draft.add("--saas.api_key_file", file)
    draft.commands.append(KEY_LINE.format(file))


def _take_hosted_model(draft: Draft, value: Any) -> None:
    if draft.engine != HOSTED:
        raise Refused(NOT_HOSTED)
    draft.set("model_name", str(value))


def _take_other(draft: Draft, given: Any) -> None:
    """Whatever has its own name here too."""
    name, value = given
    _take_hosted(f"{PREFIX}{name}")(draft, value)
    try:
        parse_engine_args([f"{PREFIX}{name}", str(value)])
    except ConfigError as error:
        raise Refused(str(error)) from None


def _take_model(draft: Draft, value: Any) -> None:
    draft.name = str(value)
    draft.set("served_model_name", [str(value)])


def _take_timeout(draft: Draft, value: Any) -> None:
    draft.set("max_wait_s", whole(value))


DEPLOY: tuple[Key, ...] = (
    needless("ray_address", "auto", NO_RAY, ["auto", "local"], NO_RAY),
    also_refuses("ray_address", "ray://10.0.0.1:10001", NO_RAY),
    sets("num_workers", 2, "workers", whole),
    Key("worker_concurrency", 10, _take_concurrency, {"engine_args": ["--max-num-seqs", "10"]}),
    Key("gpus_per_worker", 2, _take_gpus, {"per_proc_gpus": 2}),
    Key("gpus_per_worker", 0, _take_gpus, {"cuda_visible_devices": ""}),
    also_refuses("gpus_per_worker", 0.4, FRACTION),
    Key("gpu_gpus_per_worker", 2, _take_gpus, {"per_proc_gpus": 2}),
    needless("cpus_per_worker", 0.01, "cores are shared out: on GPUs those that are near each"),
    sets("model_path", "/models/m", "model_name", text),
    Key("pretrained_model_type", "custom/auto", _take_kind, says=OWN_TYPE),
    Key("pretrained_model_type", "saas/openai", _take_kind, {"infer_type": HOSTED}),
    Key(
        "pretrained_model_type",
        "saas/claude",
        _take_kind,
        {"infer_type": HOSTED, "engine_args": ["--saas.api_type", "anthropic"]},
    ),
    also_refuses("pretrained_model_type", "saas/sparkdesk", NO_VENDOR),
    Key("model", "chat", _take_model, {"served_model_name": ["chat"]}),
    Key("infer_backend", "vllm", _take_backend, {"infer_type": "vllm"}),
    Key("infer_backend", "transformers", _take_backend, {"infer_type": "transformers"}),
    Key("infer_backend", "llama_cpp", _take_backend, {"infer_type": "llama_cpp"}),
    also_refuses("infer_backend", "deepspeed", DEEPSPEED),
)
"""`byzerllm deploy`, beside --infer_params and --file."""

SERVE: tuple[Key, ...] = (
    needless("ray_address", "auto", NO_RAY, ["auto", "local"], NO_RAY),
    sets("host", "0.0.0.0", "host"),
    sets("port", 8000, "port", whole),
    sets("uvicorn_log_level", "info", "log_level", level),
    refuses("allow_credentials", True, "browsers send keys in a header here, not cookies", [False]),
    sets("allowed_origins", ["*"], "cors_origin", names),
    needless("allowed_methods", ["*"], "a page that cors_origin names may use all of them"),
    needless("allowed_headers", ["*"], "a page that cors_origin names may send all of them"),
    sets("api_key", "secret", "api_key", names, ["secret"]),
    sets("served_model_name", "chat", "served_model_name", names, ["chat"]),
    refuses("prompt_template", "<|user|>{}", TEMPLATE, [""]),
    refuses("ssl_keyfile", "/etc/tls.key", PROXY, [""]),
    refuses("ssl_certfile", "/etc/tls.pem", PROXY, [""]),
    needless("response_role", "assistant", ROLE, ["assistant"], ROLE),
    also_refuses("response_role", "bot", ROLE),
    needless("template", "auto", TEMPLATE, ["auto", "default"], TEMPLATE),
    also_refuses("template", "qwen", TEMPLATE),
)
"""`byzerllm serve`: what it says holds for the pools that are deployed beside it."""

OTHERS: tuple[Key, ...] = (
    needless("undeploy --model", "NAME", "gpupool stop NAME"),
    needless("undeploy --force", True, "gpupool stop NAME"),
    needless("undeploy --ray_address", "auto", "gpupool stop NAME"),
    also_refuses("undeploy --ray_address", "ray://10.0.0.1:10001", NO_RAY),
    needless("query --model", "NAME", "gpupool query NAME TEXT"),
    needless("query --query", "TEXT", "gpupool query NAME TEXT"),
    needless("query --template", "auto", "gpupool query NAME TEXT"),
    also_refuses("query --template", "llama", TEMPLATE),
    needless("query --output_file", "a.txt", "gpupool query NAME TEXT > a.txt"),
    also_refuses("query --output_file", "a.mp3", NO_SPEECH),
    needless("stat --model", "chat", "JSON with the same keys, asked of the pool at --url"),
    needless("stat --interval", 5, "gpupool status NAME --watch"),
    refuses("storage", "start", NO_STORE),
    refuses("easy-byzerllm deploy", "qwen-max", NO_ADDRESS),
    needless("easy-byzerllm undeploy", "NAME", "gpupool stop NAME"),
    needless("easy-byzerllm chat", "NAME", "gpupool query NAME TEXT"),
)
"""Commands that make no pool: what they are called here."""

PARAMS: tuple[Key, ...] = (
    Key(
        "saas.api_key", "secret", _take_key,
        {"engine_args": ["--saas.api_key_file", KEY_FILE]},
    ),
    Key("saas.model", "qwen-max", _take_hosted_model, {"model_name": "qwen-max"}),
    Key(
        "saas.base_url", "https://api.example/v1", _take_hosted("--saas.base_url"),
        {"engine_args": ["--saas.base_url", "https://api.example/v1"]},
    ),
    Key(
        "saas.api_type", "azure", _take_hosted("--saas.api_type"),
        {"engine_args": ["--saas.api_type", "azure"]},
    ),
    Key(
        "saas.timeout", 10, _take_hosted("--saas.timeout_s"),
        {"engine_args": ["--saas.timeout_s", "10"]},
    ),
    Key(
        "saas.*", ("reasoning_effort", "low"), _take_other,
        {"engine_args": ["--saas.reasoning_effort", "low"]},
    ),
    refuses("quatization", 4, "use a quantized model, or vLLM's --quantization bitsandbytes"),
    refuses("quantization", 4, "use a quantized model, or vLLM's --quantization bitsandbytes"),
    refuses(
        "adapter_name_or_path", "/models/lora",
        "start vLLM with --enable-lora --lora-modules NAME=PATH, and ask for the model NAME",
    ),
)  # fmt: skip
"""--infer_params of every backend; `backend.*` is vLLM's own, the rest goes by the backend."""

VARIABLES: tuple[Key, ...] = (
    sets("BYZERLLM_API_KEY", "secret", "api_key", names, ["secret"]),
    Key("BYZERLLM_APISERVER_HTTP_TIMEOUT", 600, _take_timeout, {"max_wait_s": 600}),
)
"""Variables of `byzerllm serve`."""

METHODS = {
    "setup_num_workers": "deploy --num_workers",
    "setup_gpus_per_worker": "deploy --gpus_per_worker",
    "setup_cpus_per_worker": "deploy --cpus_per_worker",
    "setup_worker_concurrency": "deploy --worker_concurrency",
    "setup_infer_backend": "deploy --infer_backend",
    "setup_template": "serve --template",
    "setup_default_model_name": "the first name of served_model_name",
    "setup_load_balance_way": "one queue for all workers; there is nothing to choose",
    "setup_pin_model_worker_mapping": "any worker answers; there is nothing to pin",
    "deploy": "gpupool run -f pool.yaml",
    "undeploy": "gpupool stop NAME",
    "abort": "close the connection, and the generation ends",
    "chat_oai": "POST /v1/chat/completions",
    "stream_chat_oai": "POST /v1/chat/completions with stream",
    "emb": "POST /v1/embeddings",
    "emb_rerank": "POST /v1/rerank",
}
"""Of ByzerLLM in Python: a program is not read, this says what to write instead."""
