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
    "saas": Entry("gpupool.engines.saas:SaasEngine", "saas_url_m"),
}


REQUIRED = sorted(
    {*Engine.__annotations__, *(name for name in vars(Engine) if name[0] != "_")} - {"model"}
)
"""What a class needs to be an engine; `model` comes with the load."""


def find_entry(infer_type: str) -> Entry:
    """The entry of a checked --infer_type."""
    return BUILT_IN.get(infer_type) or Entry(infer_type, "plugin_url_m")


def import_engine(infer_type: str) -> type[Engine]:
    """The engine class; imports its module, which may be anybody's."""
    path = find_entry(infer_type).engine
    module_name, _, class_name = path.partition(":")
    try:
        found = cast(type[Engine], getattr(importlib.import_module(module_name), class_name))
        missing = [name for name in REQUIRED if not hasattr(found, name)]
        if not missing:
            return found
        reason = f"the class lacks {', '.join(missing)}; gpupool/engines/base.py tells what they do"
    except ModuleNotFoundError as error:
        reason = f"no module {error.name!r} on the Python path"
    except AttributeError:
        reason = f"{module_name} has no {class_name!r}"
    raise ConfigError(
        f"--infer_type {infer_type!r}: {reason}; use vllm, transformers, llama_cpp, saas or "
        "package.module:EngineClass"
    )
