"""Every setting once: flags, environment and YAML become one frozen object.

Read in every process; only this module reads our environment variables. A flag given to
start_gunicorn.sh is exported as the field's variable, so flags win over YAML by being
environment, and a plain `gunicorn -c gunicorn_conf.py` with the same variables is the same pool.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from gpupool import yaml_file
from gpupool.errors import ConfigError
from gpupool.nearest import nearest_hint
from gpupool.refusal import explain_file, explain_setting
from gpupool.setting_types import (
    EngineName,
    GpuCount,
    GpuList,
    KeyFile,
    Keys,
    Launcher,
    LogLevel,
    MemoryPlan,
    ModelSource,
    Names,
    RayAddress,
    Switch,
    Words,
)


class _YamlSource(YamlConfigSettingsSource):
    """As pool.yaml is read: a key that is given twice is refused."""

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        return yaml_file.load(file_path.read_text(encoding="utf-8")) or {}


def _ancestor(env: str, name: str) -> AliasChoices:
    """The five variables older than this project keep their names; the field name is for YAML."""
    return AliasChoices(env, name)


class Settings(BaseSettings):
    """One pool's settings; frozen, the same in the master and in every worker."""

    model_config = SettingsConfigDict(
        env_prefix="GPUPOOL_", frozen=True, extra="forbid", populate_by_name=True
    )

    model_name: str = Field(
        default="",
        validation_alias=_ancestor("HF_MODEL_NAME", "model_name"),
        description="model to serve: a local folder, a .gguf file or an id of --model_source",
        json_schema_extra={"flags": ["hf-model-name", "model"], "metavar": "MODEL"},
    )
    model_source: ModelSource = Field(
        default="huggingface",
        description="where a model id is looked up: huggingface or modelscope",
        json_schema_extra={"metavar": "HUB"},
    )
    per_proc_gpus: GpuCount = Field(
        default=1,
        validation_alias=_ancestor("PER_PROC_GPUS", "per_proc_gpus"),
        description="GPUs per worker, or auto: as few as the model fits; on a machine without GPUs "
        "only 1 is possible",
    )
    infer_type: EngineName = Field(
        default="",
        validation_alias=_ancestor("INFER_TYPE", "infer_type"),
        description="vllm, transformers, llama_cpp, saas for a hosted model (any "
        "case), or package.module:EngineClass; default: vllm where GPUs are, else llama_cpp",
        json_schema_extra={"metavar": "ENGINE"},
    )
    cuda_visible_devices: GpuList | None = Field(
        default=None,
        validation_alias=_ancestor("CUDA_VISIBLE_DEVICES", "cuda_visible_devices"),
        description="GPUs to use: indices, GPU- UUIDs or MIG- ids, comma-separated; default: all",
        json_schema_extra={"metavar": "LIST"},
    )
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(
        default=5002,
        ge=1,
        le=65535,
        validation_alias=_ancestor("PORT", "port"),
        description="port to listen on",
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        description="workers to start; default: one per slice, one on a machine without GPUs",
    )
    launcher: Launcher = Field(
        default="gunicorn",
        description="what runs the replicas: gunicorn on this machine, or ray, also on a cluster",
        json_schema_extra={"metavar": "WHAT"},
    )
    ray_address: RayAddress | None = Field(
        default=None,
        description="cluster of --launcher ray: host:port of its head, or auto for the one that "
        "this machine is in; default: a Ray of the pool's own, which starts and ends with it",
        json_schema_extra={"metavar": "ADDRESS"},
    )
    num_replicas: int | None = Field(
        default=None,
        ge=1,
        description="replicas of --launcher ray; default: as many as its GPUs make, one without",
    )
    ready_quorum: int = Field(
        default=1,
        ge=1,
        description="workers that must be ready before the service counts as started",
    )
    api_key: Keys = Field(
        default=(),
        description="key that clients must send (Authorization: Bearer KEY); repeatable; no commas",
        json_schema_extra={"metavar": "KEY", "repeatable": True},
    )
    api_key_file: KeyFile | None = Field(
        default=None,
        description="file with a key on each line, plain or as sha256:HEX; it is read again when "
        "it changes",
        json_schema_extra={"metavar": "FILE"},
    )
    key_concurrency: int = Field(
        default=0,
        ge=0,
        description="requests that one key may have in flight or waiting; one more is a 429 at "
        "once; 0: no limit",
    )
    key_tokens_per_minute: int = Field(
        default=0,
        ge=0,
        description="prompt and generated tokens that one key may use within a minute, before a "
        "further request is a 429; 0: no limit",
    )
    served_model_name: Names = Field(
        default=(),
        description="name of the model in the OpenAI API; repeatable, the first is the one that "
        "answers say; default: --model_name; no commas",
        json_schema_extra={"metavar": "NAME", "repeatable": True},
    )
    cors_origin: Names = Field(
        default=(),
        description="origin of a web page that may ask from a browser, as https://host:port; * is "
        "any; repeatable; default: none",
        json_schema_extra={"metavar": "ORIGIN", "repeatable": True},
    )
    config: Path | None = Field(
        default=None,
        description="YAML file with any of these settings",
        json_schema_extra={"metavar": "FILE"},
    )
    trust_remote_code: bool = Field(
        default=False, description="run Python code that comes with the model"
    )
    threads: int = Field(
        default=256, ge=1, le=4096, description="requests one worker answers at the same time"
    )
    max_wait_s: float = Field(
        default=600,
        ge=0,
        description="how long a request waits for a free slot (then 429) or a model (then 503)",
    )
    max_waiting: int = Field(
        default=1000,
        ge=0,
        description="requests that may wait for a free slot; one more to /v1 is a 429 at once",
    )
    max_body_bytes: int = Field(
        default=8 << 20, ge=1, description="largest request body; a larger one is a 413"
    )
    read_timeout_s: float = Field(
        default=10, gt=0, description="time a client has to send a request's head, then its body"
    )
    keepalive_s: int = Field(default=75, ge=0, description="how long an idle connection stays open")
    graceful_timeout_s: int = Field(
        default=30, ge=1, description="time that requests have to finish after SIGTERM"
    )
    heartbeat_timeout_s: int = Field(
        default=60, ge=5, description="a worker whose main loop is silent this long is replaced"
    )
    stall_timeout_s: float = Field(
        default=300,
        gt=0,
        description="an engine with work that completes no step for this long is replaced, even if "
        "it computes; one that does not even compute, after 10 s",
    )
    load_timeout_s: int = Field(
        default=3600,
        ge=0,
        description="a load that takes longer is ended and tried again; 0: no limit, for a first "
        "download that takes hours",
    )
    memory_plan: MemoryPlan = Field(
        default="refuse",
        description="when the model certainly does not fit the GPUs: refuse, warn or off",
        json_schema_extra={"metavar": "WHAT"},
    )
    lock_dir: Path | None = Field(
        default=None,
        description="directory of the GPU leases, shared by all services and users; default: "
        "/run/lock/gpupool, or /dev/shm/gpupool",
        json_schema_extra={"metavar": "FOLDER"},
    )
    log_level: LogLevel = Field(
        default="info", description="debug, info, warning, error or critical"
    )
    log_format: Literal["text", "json"] = Field(
        default="text",
        description="text, or json: one object a line",
        json_schema_extra={"metavar": "FORMAT"},
    )
    access_log: Switch = Field(
        default="on",
        description="on: one line in the log for each request but probes; or off",
        json_schema_extra={"metavar": "WHAT"},
    )
    engine_args: Words = Field(
        default=(),
        description="arguments for the engine's own parser; on the command line: what follows --",
        json_schema_extra={"hidden": True},
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments over environment over YAML; no .env file, no secrets folder."""
        path = os.environ.get("GPUPOOL_CONFIG")
        yaml = (_YamlSource(settings_cls, yaml_file=path),) if path else ()
        return (init_settings, env_settings, *yaml)


def read_settings(**overrides: Any) -> Settings:
    """The settings of this process's environment; ConfigError names flag, value and remedy."""
    refuse_unknown_variables()
    path = os.environ.get("GPUPOOL_CONFIG")
    if path and not Path(path).is_file():
        raise ConfigError(f"--config {path!r}: no such file; give the path of a YAML file")
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise ConfigError(explain_refusal(error)) from None
    except Exception as error:  # the YAML parser's own errors have no common base we may import
        if not path:
            raise
        raise ConfigError(explain_file(path, error)) from None


def hosted_key() -> str:
    """The key for the host of a hosted model, if it was given so. No setting: those are shown."""
    return os.environ.get("GPUPOOL_SAAS_API_KEY", "")


def asked_run_dir() -> str:
    """Where `gpupool run` keeps what it knows of its pools, if that was said."""
    return os.environ.get("GPUPOOL_RUN_DIR", "")


def pool_name() -> str:
    """What `gpupool run` calls this process's pool, "" where it did not start it."""
    folder = Path(os.environ.get("GPUPOOL_CONFIG", "")).parent
    return folder.name if (folder / "pool.json").is_file() else ""


def env_name(field: str) -> str:
    """The environment variable of a field."""
    alias = Settings.model_fields[field].validation_alias
    if isinstance(alias, AliasChoices):
        return str(alias.choices[0])
    return f"GPUPOOL_{field.upper()}"


def refuse_unknown_variables(environ: Mapping[str, str] = os.environ) -> None:
    """ConfigError for a variable that looks like a setting and is none."""
    known = {env_name(field) for field in Settings.model_fields} | INTERNAL_VARIABLES
    for name in environ:
        if name.startswith("GPUPOOL_") and name not in known:
            raise ConfigError(
                f"environment variable {name} is not a setting{nearest_hint(name, known)}; "
                "unset it, or see --help"
            )


INTERNAL_VARIABLES = frozenset(
    {
        "GPUPOOL_CHECKED", "GPUPOOL_LEASE", "GPUPOOL_LOG_FILE", "GPUPOOL_RAY_DOOR",
        "GPUPOOL_SINGLE", "GPUPOOL_RUN_DIR", "GPUPOOL_SAAS_API_KEY",
    }
)  # fmt: skip
"""Set by our own processes for their children, but for the last two (docs/cli.md, docs/saas.md);
not settings."""


def explain_refusal(error: ValidationError) -> str:
    """One line: the flag, what it is, why that cannot be."""
    return explain_setting(error, {field: env_name(field) for field in Settings.model_fields})
