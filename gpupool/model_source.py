"""Model ids from ModelScope: found in its cache, or fetched from its hub (preflight, worker, plan).

An engine is given a folder then, or a .gguf file, and asks no hub. Ids of Hugging Face are the
engines' own business. The package modelscope is imported inside functions.
"""

from __future__ import annotations

import json
import logging
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock

from gpupool import kept
from gpupool.engines.base import Report
from gpupool.errors import ConfigError, GpupoolError
from gpupool.extras import install_line
from gpupool.setting_types import HOSTED, MODEL_SOURCES
from gpupool.settings import Settings

log = logging.getLogger(__name__)

MODELSCOPE = "modelscope"
INDEX = "model.safetensors.index.json"
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
NOT_LOADED = ["*.gguf", "*.pth", "*.onnx", "*.h5", "*.msgpack", "original/*", "onnx/*"]
"""Other forms of the same weights, which may be as large again."""
SHARD = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
HOPELESS = ("NotExistError", "InvalidParameter", "NotSupportError")
"""Their exceptions that will come again, by name: a stub of the package may lack them."""


def is_elsewhere(settings: Settings) -> bool:
    """Whether --model_name is an id of ModelScope, and not a path."""
    name = settings.model_name
    return (
        settings.model_source == MODELSCOPE
        and settings.infer_type != HOSTED
        and not name.startswith(("/", ".", "~"))
        and not Path(name).exists()
    )


def look_up(settings: Settings, infer_type: str) -> tuple[Settings, bool]:
    """The settings with a folder in the place of the id, and whether the weights are there too;
    without them it holds the small files. ConfigError where there is no such model. Takes as long
    as the hub does, unless the model is here whole."""
    if not is_elsewhere(settings):
        return settings, True
    found = _find_local(settings, infer_type)
    if found is not None:
        return _with_path(settings, found), True
    asked = f"--model_name {settings.model_name!r} from ModelScope"
    try:
        folder = _snapshot(settings.model_name, allow_patterns=["*.json"])
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{asked}: {_one_line(error)}") from None
    return _with_path(settings, folder), False


def folder_of(model_name: str, source: str) -> str:
    """What a planner reads: the model's folder where the id is ModelScope's."""
    if source not in MODEL_SOURCES:
        raise ConfigError(f"--model_source is {source!r}; use {' or '.join(MODEL_SOURCES)}")
    settings = Settings.model_construct(model_name=model_name, model_source=source)
    return look_up(settings, "")[0].model_name


def fetch(settings: Settings, report: Report) -> Settings:
    """The settings with a local path in the place of the id; downloads what is missing, one
    worker of all. ConfigError where there is no such model; other errors may pass."""
    if not is_elsewhere(settings):
        return settings
    report("looking for the model at ModelScope", None)
    with _alone(settings.model_name):
        report("downloading from ModelScope", None)
        try:
            folder = _snapshot(settings.model_name, **_patterns(settings, settings.infer_type))
            found = _path_in(folder, settings, settings.infer_type)
        except ConfigError:
            raise
        except Exception as error:
            local = _find_local(settings, settings.infer_type)
            if local is None:
                raise GpupoolError(f"ModelScope: {_one_line(error)}") from error
            log.warning("ModelScope cannot be asked, its cache is used: %s", _one_line(error))
            found = local
    return _with_path(settings, found)


def _with_path(settings: Settings, path: Path) -> Settings:
    """The model is still served under its id."""
    served = settings.served_model_name or (settings.model_name,)
    return settings.model_copy(update={"model_name": str(path), "served_model_name": served})


def _find_local(settings: Settings, infer_type: str) -> Path | None:
    """What the cache has, if that is whole."""
    try:
        folder = _snapshot(settings.model_name, local_files_only=True)
        path = _path_in(folder, settings, infer_type)
    except ConfigError as error:
        if isinstance(error, NotInstalled):
            raise
        return None
    except Exception:  # theirs for what is not in the cache: a plain ValueError
        return None
    return path if _is_whole(path) else None


class NotInstalled(ConfigError):
    """The package that asks ModelScope is missing."""


def _snapshot(model: str, **how: Any) -> Path:
    """The model's folder in the cache of ModelScope's own client."""
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise NotInstalled(
            "--model_source modelscope needs the package modelscope, which is not installed; "
            f"{install_line('modelscope')}, or give a local folder"
        ) from None
    try:
        return Path(snapshot_download(_repository(model), **how))
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if type(error).__name__ in HOPELESS or status in (401, 403, 404):
            raise ConfigError(
                f"--model_name {model!r}: no such model at ModelScope, or not for you "
                f"({_one_line(error)}); check the id, or `modelscope login` if it is private"
            ) from None
        raise


def _repository(model: str) -> str:
    """ORG/NAME of ORG/NAME/FILE.gguf."""
    return "/".join(model.split("/")[:2])


def _file_of(model: str) -> str:
    """FILE.gguf of ORG/NAME/FILE.gguf, else nothing."""
    return "/".join(model.split("/")[2:])


def _patterns(settings: Settings, infer_type: str) -> dict[str, Any]:
    """Which files an engine needs."""
    if file := _file_of(settings.model_name):
        return {"allow_patterns": [SHARD.sub(r"-*-of-\1.gguf", file), "*.json"]}
    if infer_type == "llama_cpp":
        return {"allow_patterns": ["*.gguf", "*.json"]}
    return {"ignore_patterns": NOT_LOADED}


def _path_in(folder: Path, settings: Settings, infer_type: str) -> Path:
    """What the engine loads: the folder, or its one GGUF file."""
    if file := _file_of(settings.model_name):
        if not (folder / file).is_file():
            raise ConfigError(
                f"--model_name {settings.model_name!r}: {_repository(settings.model_name)} has no "
                f"file {file!r}"
            )
        return folder / file
    if infer_type != "llama_cpp":
        return folder
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.gguf"))
    first = [name for name in found if not SHARD.search(name) or "-00001-of-" in name]
    if len(first) == 1:
        return folder / first[0]
    there = f"has {', '.join(first)}" if first else "has no .gguf file"
    raise ConfigError(
        f"--model_name {settings.model_name!r} {there}; llama_cpp loads one: name it, as "
        f"{settings.model_name}/FILE.gguf"
    )


def _is_whole(path: Path) -> bool:
    """Whether all weights are there: a download that was cut off leaves some."""
    if path.is_file():
        shard = SHARD.search(path.name)
        pattern = SHARD.sub(r"-*-of-\1.gguf", path.name)
        return shard is None or len([*path.parent.glob(pattern)]) == int(shard[1])
    try:
        names = set(json.loads((path / INDEX).read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError):
        return any(next(path.glob(pattern), None) for pattern in WEIGHTS)
    return all((path / name).is_file() for name in names)


def _alone(model: str) -> AbstractContextManager[Any]:
    """The workers of a pool load at the same time, and would download into the same files."""
    try:
        path = kept.path_of("download", {"model": _repository(model)}).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return nullcontext()
    return FileLock(path)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
