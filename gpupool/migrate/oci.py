"""Oracle's model deployments (AI Quick Actions): their environment, and the flags and files that
make it (pure; the import command)."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpupool.errors import ConfigError
from gpupool.migrate import llama_cpp_args, vllm_args
from gpupool.migrate.flagscale_keys import take_modelscope
from gpupool.migrate.keys import (
    Draft,
    Key,
    Refused,
    also_refuses,
    apply,
    find_row,
    flatten,
    needless,
    refuses,
    sets,
    whole,
)
from gpupool.migrate.pools import Imported, finish
from gpupool.nearest import nearest_hint

PORT = 8080
NAME = "odsc-llm"
PLATFORM = "the machine is yours here; there is no such resource to name"
ALL_ROUTES = "every route is there always; clients ask /v1/completions, /v1/chat/completions, ..."
PREDICT = "the pool has no /predict; let clients ask /v1/completions or /v1/chat/completions"
PROBES = "probes are answered on the pool's own port: /livez and /readyz"
NO_TGI = "TGI is no engine here; vllm serves its models: give vLLM's arguments in PARAMS"
NO_TEI = "TEI is no engine here; vllm and llama_cpp serve embeddings at /v1/embeddings"
TUNED = "merge it into the model, or give vLLM --enable-lora --lora-modules NAME=PATH in PARAMS"
WEB = "a worker answers many requests at once by itself; there are no web processes to count"
CATALOG = "the catalog is not here; give the model's folder or its Hugging Face id"
NO_MODEL = "it names no model; write it as PARAMS into an env file, with BASE_MODEL"
SHAPES = "`gpupool plan --shape SHAPE` says what fits a shape, and how to cut it"
EXPORTED = "exported before the start; the engines inherit it"
ONE_MACHINE = "a pool is one machine's; start one on each"
IMAGE = "no container is needed; pip install gpupool in yours, if you want one"
FAMILIES = {"odsc-vllm-serving": "vllm", "odsc-llama-cpp-serving": "llama_cpp"}
REFUSED_FAMILIES = {"odsc-tgi-serving": NO_TGI, "odsc-tei-serving": NO_TEI}
Load = Callable[[Path], Any]


def _take_params(draft: Draft, value: Any) -> None:
    """The words that the container gives its engine."""
    table = llama_cpp_args.KEYS if draft.engine == "llama_cpp" else vllm_args.KEYS
    apply(draft, table, vllm_args.read_words(shlex.split(str(value))).items(), "PARAMS --")


def _take_route(draft: Draft, value: Any) -> None:
    if not str(value).startswith("/v1/"):
        raise Refused(PREDICT)
    draft.notes.append(f"MODEL_DEPLOY_PREDICT_ENDPOINT {value}: {ALL_ROUTES}")


def _take_family(draft: Draft, value: Any) -> None:
    if value in REFUSED_FAMILIES:
        raise Refused(REFUSED_FAMILIES[value])
    if value not in FAMILIES:
        raise Refused(f"not a known family{nearest_hint(str(value), FAMILIES)}")
    draft.set("infer_type", FAMILIES[value])


def _take_probe_port(draft: Draft, value: Any) -> None:
    if whole(value) != draft.values.get("port", PORT):
        raise Refused(PROBES)
    draft.notes.append(f"port {value} for probes: {PROBES}")


def _take_shape(draft: Draft, value: Any) -> None:
    draft.notes.append(
        f"--instance_shape {value}: `gpupool plan --shape {value}` says what fits it"
    )


def _take_model_id(draft: Draft, value: Any) -> None:
    if str(value).startswith("ocid1."):
        raise Refused(CATALOG)
    draft.set("model_name", str(value))


def _take_name(draft: Draft, value: Any) -> None:
    draft.name = str(value)


def _take_variable(draft: Draft, pair: tuple[str, Any]) -> None:
    name, value = pair
    draft.commands.append(f"export {name}={shlex.quote(str(value))}")


ENVIRONMENT: tuple[Key, ...] = (
    sets("BASE_MODEL", "/models/m", "model_name"),
    sets("PORT", "8080", "port", whole, 8080),
    Key("HEALTH_CHECK_PORT", "8080", _take_probe_port, says=PROBES),
    also_refuses("HEALTH_CHECK_PORT", "9090", PROBES),
    Key(
        "PARAMS",
        "--served-model-name odsc-llm --seed 42",
        _take_params,
        {"served_model_name": [NAME], "engine_args": ["--seed", "42"]},
    ),
    Key(
        "VLLM_PARAMS",
        "--max-model-len 4096",
        _take_params,
        {"engine_args": ["--max-model-len", "4096"]},
    ),
    refuses("TGI_PARAMS", "--max-input-length 4096", NO_TGI),
    Key("MODEL_DEPLOY_PREDICT_ENDPOINT", "/v1/completions", _take_route, says=ALL_ROUTES),
    also_refuses("MODEL_DEPLOY_PREDICT_ENDPOINT", "/predict", PREDICT),
    needless("MODEL_DEPLOY_ENABLE_STREAMING", "true", "a client that wants a stream asks for one"),
    needless("MODEL_DEPLOY_HEALTH_ENDPOINT", "/health", PROBES),
    refuses("FT_MODEL", "bucket/tuned", TUNED),
    Key("VLLM_USE_MODELSCOPE", "True", take_modelscope, {"model_source": "modelscope"}),
    needless("WEB_CONCURRENCY", 10, WEB),
    needless("SHM_SIZE", "10g", "give it to docker as --shm-size, if the pool is in a container"),
    needless("STORAGE_SIZE_IN_GB", 150, PLATFORM),
    Key(
        "*",
        ("NCCL_CUMEM_ENABLE", 0),
        _take_variable,
        says="exported before the start; the engines inherit it",
    ),
)
"""Of the container."""

CREATE: tuple[Key, ...] = (
    Key("model_id", "/models/m", _take_model_id, {"model_name": "/models/m"}),
    also_refuses("model_id", "ocid1.datasciencemodel.oc1..x", CATALOG),
    Key(
        "instance_shape",
        "VM.GPU.A10.2",
        _take_shape,
        says="`gpupool plan --shape SHAPE` says what fits it",
    ),
    Key("display_name", "chat", _take_name, says="the pool's name"),
    refuses("instance_count", 2, ONE_MACHINE, [1, "1"]),
    needless("web_concurrency", 10, WEB),
    sets("server_port", 8080, "port", whole),
    Key("health_check_port", 8080, _take_probe_port, says=PROBES),
    also_refuses("health_check_port", 9090, PROBES),
    Key("container_family", "odsc-vllm-serving", _take_family, {"infer_type": "vllm"}),
    Key("container_family", "odsc-llama-cpp-serving", _take_family, {"infer_type": "llama_cpp"}),
    also_refuses("container_family", "odsc-tgi-serving", NO_TGI),
    also_refuses("container_family", "odsc-tei-serving", NO_TEI),
    needless("memory_in_gbs", 64, PLATFORM),
    needless("ocpus", 8, PLATFORM),
    sets("model_file", "/models/m.gguf", "model_name"),
    needless("container_image_uri", "iad.ocir.io/x/vllm:0.6", IMAGE),
    Key(
        "cmd_var",
        "--max-model-len 4096",
        _take_params,
        {"engine_args": ["--max-model-len", "4096"]},
    ),
    *(
        needless(name, "ocid1.x", PLATFORM)
        for name in ("private_endpoint_id", "log_group_id", "access_log_id", "predict_log_id")
    ),
)
"""`ads aqua deployment create`, beside --env_var."""

CONFIG: tuple[Key, ...] = (
    refuses("shape", ["VM.GPU.A10.2"], SHAPES),
    refuses("configuration.*.parameters.VLLM_PARAMS", "--seed 42", NO_MODEL),
    refuses("configuration.*.parameters.TGI_PARAMS", "--max-input-length 4096", NO_TGI),
    refuses(
        "configuration.*.multi_model_deployment",
        [{"gpu_count": 1}],
        "each model is a pool of its own; per_proc_gpus is the GPUs of one of its workers",
    ),
    refuses("configuration.*.shape_info", {"configs": []}, SHAPES),
)
"""deployment_config.json, which belongs to a model and does not name it."""


def is_oci(content: Any) -> bool:
    """Whether a file's content is an environment, a deployment's description, or its config."""
    if not isinstance(content, dict):
        return False
    known = {key.name for key in ENVIRONMENT if "*" not in key.name} - {"PORT"}
    return bool(known & set(content)) or bool(
        {"environment_variables", "configuration"} & set(content)
    )


def read(content: Mapping[str, Any], draft: Draft | None = None) -> Imported:
    """The pool of an environment, or of the description that has one."""
    draft = draft or Draft()
    if "configuration" in content:
        apply(draft, CONFIG, flatten(CONFIG, content))
        return finish([draft], PORT)
    environment = dict(content.get("environment_variables") or content)
    # The engine is what the parameters are read by, and the port what the probe's is compared to.
    order = [key.name for key in ENVIRONMENT if key.name in environment]
    given = [(name, environment.pop(name)) for name in order if name in environment]
    apply(draft, ENVIRONMENT, [*given, *environment.items()])
    draft.values.setdefault("infer_type", draft.engine)
    draft.name = draft.name or (draft.values.get("served_model_name") or [""])[0]
    return finish([draft], PORT)


def read_env_file(text: str) -> dict[str, str]:
    """NAME=VALUE lines, perhaps with `export`, quotes and comments."""
    found = {}
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["export"]:
            words = words[1:]
        if not words:
            continue
        name, has_value, value = words[0].partition("=")
        if not has_value or not name.isidentifier():
            raise ConfigError(f"{line.strip()!r}: write NAME=VALUE on a line")
        found[name] = " ".join([value, *words[1:]])
    return found


def read_command(words: Sequence[str]) -> Imported:
    """`ads aqua deployment create` and its flags, without those four words."""
    flags: dict[str, Any] = {}
    left = list(words)
    while left:
        word, has_value, value = left.pop(0).partition("=")
        name = word.removeprefix("--").replace("-", "_")
        if name != "env_var" and find_row(CREATE, name) is None:
            hint = nearest_hint(name, [key.name for key in CREATE])
            raise ConfigError(f"ads aqua deployment create {word}: not a known flag{hint}")
        if not has_value and not left:
            raise ConfigError(f"ads aqua deployment create {word}: give a value")
        flags[name] = value if has_value else left.pop(0)
    environment = _environment(flags.pop("env_var", None))
    draft = Draft()
    order = [key.name for key in CREATE if key.name in flags]
    known = [(name, flags.pop(name)) for name in order if name in flags]
    first = sorted(known, key=lambda pair: pair[0] in ("cmd_var", "health_check_port"))
    apply(draft, CREATE, first, "--")
    if "model_name" in draft.values:
        environment.pop("BASE_MODEL", None)
    return read(environment, draft)


def recommended(words: Sequence[str]) -> str:
    """`ads aqua deployment recommend_shape`, in our words."""
    text = " ".join(words).replace("=", " ").split()
    if "--model_id" not in text[:-1]:
        raise ConfigError("ads aqua deployment recommend_shape: give --model_id")
    model = text[text.index("--model_id") + 1]
    return shlex.join(["gpupool", "plan", "--aqua", "--model_name", model])


OTHERS: tuple[Key, ...] = (
    needless("recommend_shape --model_id", "NAME", "gpupool plan --aqua --model_name NAME"),
)
"""Commands of `ads aqua deployment` that make no pool."""


def _environment(given: str | None) -> dict[str, Any]:
    try:
        found = json.loads(given or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError("ads aqua deployment create --env_var: give a JSON object")
    return found
