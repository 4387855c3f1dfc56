"""--model_name -> what is to be loaded: a folder, a GGUF file, the hub's cache, or the hub.

Reads configurations and headers, never weights; imports no engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpupool.errors import ConfigError
from gpupool.planner import gguf, hub
from gpupool.planner.config import read_config
from gpupool.planner.option import Subject
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
    if (path := _local_path(model_name)) is not None:
        if gguf.is_gguf(path):
            model, stored, by_type = gguf.read_model(model_name)
            subject = Subject(model_name, model, stored, "llama_cpp")
            return Checkpoint(subject, "GGUF metadata", by_type)
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


def _local_path(model_name: str) -> Path | None:
    """The file or folder of this name, if there is one."""
    try:
        path = Path(model_name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError) as error:  # a name too long, or the home of nobody
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"--model_name {model_name[:200]!r} is no path: {reason}") from None


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
    stored = in_memory(tensors, model)
    return Checkpoint(Subject(model_name, model, stored), source, bytes_by_dtype(tensors))
