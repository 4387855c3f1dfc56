"""How the text of a flag, a variable or a YAML file becomes a setting's value, or is refused (any
process)."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

from gpupool.errors import ConfigError
from gpupool.keys import read_key_file
from gpupool.nearest import nearest_hint

AUTO_GPUS = 0
"""per_proc_gpus as long as nobody has chosen: only the preflight ever sees it."""
AUTO_REPLICAS = 0
"""num_replicas where the load decides."""

HOSTED = "saas"
"""The engine that has no weights: it takes no GPU, and its model is no file."""
ENGINE_NAMES = ("vllm", "transformers", "llama_cpp", HOSTED)
MODEL_SOURCES = ("huggingface", "modelscope")
WHEN_TOO_LARGE = ("refuse", "warn", "off")
LAUNCHERS = ("gunicorn", "ray")
LEVELS = ("debug", "info", "warning", "error", "critical")


def _known_engine(value: str) -> str:
    if ":" in value:
        return value
    name = value.lower().replace("-", "_").replace(".", "_")
    if name in ("", *ENGINE_NAMES):
        return name
    raise ValueError(
        f"{value!r} is no engine{nearest_hint(name, ENGINE_NAMES)}; "
        f"use {', '.join(ENGINE_NAMES)} or package.module:EngineClass"
    )


def _auto_is_nobodys_number(value: Any) -> Any:
    text = str(value).strip().lower()
    if text == "auto":
        return AUTO_GPUS
    if re.fullmatch("0*[1-9][0-9]*", text) is None:
        raise ValueError("use a number from 1 up, or auto")
    return value


def _whole_gpus(value: Any) -> Any:
    if re.fullmatch(r"0*\.[0-9]*[1-9][0-9]*", str(value).strip()):
        raise ValueError("a lease is of whole GPUs, so no two replicas share one; use 1 or more")
    return _auto_is_nobodys_number(value)


def _known_source(value: str) -> str:
    if value not in MODEL_SOURCES:
        raise ValueError(f"{value!r} is neither huggingface nor modelscope")
    return value


def _switch_as_word(value: Any) -> Any:
    """`on` and `off` without quotes are truth values in a YAML file."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _known_plan(value: str) -> str:
    if value not in WHEN_TOO_LARGE:
        raise ValueError(f"{value!r} is none of refuse, warn and off")
    return value


def _known_launcher(value: str) -> str:
    if value not in LAUNCHERS:
        raise ValueError(f"{value!r} is neither gunicorn nor ray")
    return value


def _ray_address(value: str) -> str:
    if value != "auto" and re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/]+):[0-9]{1,5}", value) is None:
        raise ValueError("give host:port of the cluster's head, or auto")
    return value


def _known_level(value: str) -> str:
    if value.lower() not in LEVELS:
        raise ValueError(f"{value!r} is no level; use debug, info, warning, error or critical")
    return value.lower()


def _words(value: Any) -> Any:
    return tuple(shlex.split(value)) if isinstance(value, str) else value


def _keys(value: Any) -> Any:
    keys = value.split(",") if isinstance(value, str) else value
    if not isinstance(keys, list | tuple) or not all(isinstance(key, str) for key in keys):
        raise ValueError("a key must be a string, or a list of them")
    keys = tuple(key.strip() for key in keys)
    if not all(key.isascii() and key.isprintable() and key for key in keys):
        # Never shown: it may be most of the right one.
        raise ValueError("a key must be printable ASCII, not empty, without commas")
    return keys


def _with_keys(value: Path) -> Path:
    try:
        read_key_file(value)
    except ConfigError as error:
        # The setting and its value stand before it already.
        raise ValueError(str(error).removeprefix(f"--api_key_file {str(value)!r} ")) from None
    return value


def _names(value: Any) -> Any:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(
        isinstance(item, str) and item.strip() for item in items
    ):
        raise ValueError("send a string that is not empty, or a list of them")
    return tuple(item.strip() for item in items)


EngineName = Annotated[str, AfterValidator(_known_engine)]
GpuCount = Annotated[int, Field(ge=0), BeforeValidator(_whole_gpus)]
ReplicaCount = Annotated[int, Field(ge=0), BeforeValidator(_auto_is_nobodys_number)]
GpuList = Annotated[str, AfterValidator(str.strip)]
ModelSource = Annotated[str, AfterValidator(_known_source)]
MemoryPlan = Annotated[str, BeforeValidator(_switch_as_word), AfterValidator(_known_plan)]
Switch = Annotated[Literal["on", "off"], BeforeValidator(_switch_as_word)]
Launcher = Annotated[str, AfterValidator(_known_launcher)]
RayAddress = Annotated[str, AfterValidator(_ray_address)]
LogLevel = Annotated[str, AfterValidator(_known_level)]
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]
Keys = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_keys)]
KeyFile = Annotated[Path, AfterValidator(_with_keys)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)]
