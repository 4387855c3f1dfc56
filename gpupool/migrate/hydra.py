"""What FlagScale's configuration needs of Hydra: files composed by `defaults`, overrides, and
references such as ${experiment.exp_name} (pure but for the loading; the import command)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpupool.errors import ConfigError
from gpupool.migrate.keys import Refused

REFERENCE = re.compile(r"\$\{([^{}]+)\}")
MAX_DEPTH = 8
Tree = dict[str, Any]
Load = Callable[[Path], Any]


def compose(path: Path, content: Any, load: Load) -> Any:
    """The content of a file with those that its `defaults` name, which stand in folders beside
    it: `serve: 7b` is serve/7b.yaml, below the key serve."""
    if not isinstance(content, dict) or "defaults" not in content:
        return content
    own = {key: value for key, value in content.items() if key != "defaults"}
    whole: Tree = {}
    for entry in content["defaults"] or []:
        if entry == "_self_":
            _merge(whole, own)
        elif isinstance(entry, dict) and len(entry) == 1:
            [(group, name)] = entry.items()
            beside = path.parent / str(group) / f"{str(name).removesuffix('.yaml')}.yaml"
            _merge(whole, {str(group): compose(beside, load(beside), load)})
        else:
            raise ConfigError(f"{path}: defaults: {entry!r} is not `_self_` or `GROUP: NAME`")
    if "_self_" not in (content["defaults"] or []):
        _merge(whole, own)
    return whole


def _merge(into: Tree, more: Tree) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def override(config: Tree, path: str, value: Any) -> None:
    """Put a value where a.b.c says."""
    *parents, last = path.split(".")
    for parent in parents:
        config = config.setdefault(parent, {})
    config[last] = value


def resolve(config: Tree) -> Tree:
    """With every ${a.b} replaced by what stands there; Refused where nothing does."""
    return {key: _resolve(config, value, 0) for key, value in config.items()}


def _resolve(config: Tree, value: Any, depth: int) -> Any:
    if isinstance(value, dict):
        return {key: _resolve(config, item, depth) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(config, item, depth) for item in value]
    if not isinstance(value, str) or not REFERENCE.search(value):
        return value
    if depth > MAX_DEPTH:
        raise Refused(f"{value}: refers to itself")
    if whole := REFERENCE.fullmatch(value):
        return _resolve(config, _look_up(config, whole[1]), depth + 1)
    inner = REFERENCE.sub(lambda found: str(_look_up(config, found[1])), value)
    return _resolve(config, inner, depth + 1)


def _look_up(config: Tree, path: str) -> Any:
    found: Any = config
    for part in path.split("."):
        if not isinstance(found, Mapping) or part not in found:
            raise Refused(f"${{{path}}}: there is no such value; write it where it is used")
        found = found[part]
    return found
