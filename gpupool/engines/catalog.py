"""Which module serves which --infer_type (plain strings; any process)."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import cast

from gpupool.engines.base import Engine
from gpupool.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Entry:
    """Where an engine's class is, and the application module that boots it."""

    engine: str  # package.module:Class
    app_module: str


BUILT_IN = {
    "vllm": Entry("gpupool.engines.vllm:VllmEngine", "vllm_url_m"),
    "transformers": Entry("gpupool.engines.transformers:TransformersEngine", "transformers_url_m"),
    "llama_cpp": Entry("gpupool.engines.llama_cpp:LlamaCppEngine", "llama_cpp_url_m"),
}


def find_entry(infer_type: str) -> Entry:
    """The entry of a checked --infer_type."""
    return BUILT_IN.get(infer_type) or Entry(infer_type, "plugin_url_m")


def import_engine(infer_type: str) -> type[Engine]:
    """The engine class; imports its module, which may be anybody's."""
    path = find_entry(infer_type).engine
    module_name, _, class_name = path.partition(":")
    try:
        return cast(type[Engine], getattr(importlib.import_module(module_name), class_name))
    except ModuleNotFoundError as error:
        reason = f"no module {error.name!r} on the Python path"
    except AttributeError:
        reason = f"{module_name} has no {class_name!r}"
    raise ConfigError(
        f"--infer_type {infer_type!r}: {reason}; use vllm, transformers, llama_cpp or "
        "package.module:EngineClass"
    )
