"""--model_name -> what is to be loaded: a folder, a GGUF file, the hub's cache, or the hub.

Reads configurations and headers, never weights; imports no engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpupool.errors import ConfigError
from gpupool.planner import gguf, hub
from gpupool.planner.advice import Subject
from gpupool.planner.config import read_config
from gpupool.planner.tensors import Tensor, bytes_by_dtype, in_memory, read_folder, read_json


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's files as far as the planner reads them."""

    subject: Subject
    source: str  # where that was read
    bytes_by_type: dict[str, int]  # of the stored weights; empty where no header was read


def read_checkpoint(
    model_name: str, dtype: str = "auto", *, is_offline: bool = False
) -> Checkpoint:
    """What --model_name means; ConfigError says what was found instead."""
    if gguf.is_gguf(model_name):
        model, stored, by_type = gguf.read_model(model_name)
        subject = Subject(model_name, model, stored, "llama_cpp")
        return Checkpoint(subject, "GGUF metadata", by_type)
    path = Path(model_name).expanduser()
    if path.exists():
        return _read_local(model_name, path, dtype, "safetensors headers")
    if model_name.startswith(("/", "./", "../", "~")) or model_name.count("/") > 1:
        raise ConfigError(
            f"--model_name {model_name!r}: no such folder; give a folder with config.json, a "
            ".gguf file or a Hugging Face id"
        )
    if (folder := hub.cached_folder(model_name)) is not None:
        found = _read_local(model_name, folder, dtype, "safetensors headers in the cache")
        if found.bytes_by_type or is_offline:
            return found
        config = read_json(folder / hub.CONFIG)
    elif is_offline:
        raise ConfigError(f"--model_name {model_name!r} is not in the local cache")
    else:
        config = hub.fetch_config(model_name)
    return _described(model_name, config, hub.fetch_tensors(model_name), dtype, "the hub's headers")


def _read_local(model_name: str, path: Path, dtype: str, source: str) -> Checkpoint:
    if not (path / hub.CONFIG).is_file():
        what = "is a file" if path.is_file() else f"has no {hub.CONFIG} and no .gguf file"
        raise ConfigError(
            f"--model_name {model_name!r} {what}; give a folder with {hub.CONFIG} and weights, a "
            ".gguf file or a Hugging Face id"
        )
    return _described(model_name, read_json(path / hub.CONFIG), read_folder(path), dtype, source)


def _described(
    model_name: str, config: dict[str, Any], tensors: tuple[Tensor, ...], dtype: str, source: str
) -> Checkpoint:
    model = read_config(config, dtype=dtype)
    if not tensors:
        return Checkpoint(Subject(model_name, model), "config.json alone", {})
    stored = in_memory(tensors, model.dtype, model.num_layers, is_tied=model.is_tied)
    return Checkpoint(Subject(model_name, model, stored), source, bytes_by_dtype(tensors))
