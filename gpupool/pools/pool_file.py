"""pool.yaml: the settings of one pool, or of several below `models` (any command).

One pool's file has the keys of start_gunicorn.sh's flags, and perhaps `name`. With `models` each
entry is a pool by its name; what stands beside `models` holds for all of them. Variables of the
environment win over the file, as everywhere.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gpupool import yaml_file
from gpupool.errors import ConfigError
from gpupool.nearest import nearest_hint
from gpupool.pools.given import settings_of, variables_of
from gpupool.refusal import one_line
from gpupool.settings import Settings

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
PACKAGE = "package:"
KEYS = tuple(field for field in Settings.model_fields if field != "config")
PATHS = ("api_key_file", "lock_dir")
FILE_KEYS = (*KEYS, "name", "models")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A pool as a file describes it; relative paths in it count from the file's folder."""

    name: str
    file: Path
    values: dict[str, Any]  # of the file and the environment, as they were written
    overlay: dict[str, str]  # what came from the environment, by field
    settings: Settings


def read_pool_file(path: Path, environ: Mapping[str, str]) -> list[Wanted]:
    """The pools of a file, in its order; ConfigError says what is wrong and where."""
    content = _load(path)
    overlay = {
        field: environ[name] for name, field in variables_of(environ).items() if field in KEYS
    }
    found = [
        _wanted(path, name, values, overlay) for name, values in _sections(path, content).items()
    ]
    _refuse_shared_ports(path, found)
    return found


def names_in(path: Path) -> list[str]:
    """The names of a file's pools, whose settings are not looked at; ConfigError as above."""
    return list(_sections(path, _load(path)))


def read_one(path: Path, name: str, overlay: dict[str, str]) -> Wanted:
    """The pool of this name, with the environment that it was started with."""
    sections = _sections(path, _load(path))
    if name not in sections:
        raise ConfigError(
            f"{path}: there is no pool {name!r} any more, only {', '.join(sections)}; "
            f"stop it with `gpupool stop {name}`, or give it back its name"
        )
    return _wanted(path, name, sections[name], overlay)


def select(found: list[Wanted], names: list[str], path: Path) -> list[Wanted]:
    """Those of a file that are named; all if none is."""
    known = [wanted.name for wanted in found]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{path} has no pool {name!r}{nearest_hint(name, known)}; it has {', '.join(known)}"
            )
    return [wanted for wanted in found if not names or wanted.name in names]


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml_file.load(path.read_text())
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; give the file with -f (examples/demo.yaml is one)"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {one_line(error)}") from None
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path}: write settings into it, as `model_name: MODEL` on a line")
    _refuse_unknown(path, "", content, FILE_KEYS)
    return content


def _sections(path: Path, content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each pool's values by its name."""
    common = {key: value for key, value in content.items() if key not in ("name", "models")}
    if "models" not in content:
        name = str(content.get("name", path.stem))
        _check_name(path, name)
        return {name: common}
    models = content["models"]
    if "name" in content or not isinstance(models, dict) or not models:
        raise ConfigError(
            f"{path}: below `models` each pool stands by its name, as `a: {{model_name: MODEL}}`"
        )
    sections = {}
    for name, values in models.items():
        _check_name(path, str(name))
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: pool {name!r} is {values!r}; write its settings there")
        _refuse_unknown(path, f"pool {name!r}: ", values, KEYS)
        sections[str(name)] = common | values
    return sections


def _check_name(path: Path, name: str) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{path}: {name!r} is no name for a pool; use letters, digits, '.', '_' and '-', at "
            "most 63, or give another with `name:`"
        )


def _refuse_unknown(path: Path, where: str, values: dict[Any, Any], known: tuple[str, ...]) -> None:
    for key in values:
        if key not in known:
            hint = nearest_hint(str(key), known)
            raise ConfigError(
                f"{path}: {where}{key!r} is not a setting{hint}; see gpupool run --help"
            )


def _wanted(path: Path, name: str, given: dict[str, Any], overlay: dict[str, str]) -> Wanted:
    values = given | overlay
    try:
        model = values.get("model_name", "")
        if isinstance(model, str) and model.startswith(PACKAGE):
            values["model_name"] = _file_of_package(model)
        for key in PATHS:
            if isinstance(value := values.get(key), str):
                values[key] = str(path.absolute().parent / value)
        settings = settings_of(values)
        if not settings.model_name:
            raise ConfigError("no model; write `model_name: MODEL`")
        if settings.launcher != "gunicorn":
            raise ConfigError(
                f"launcher is {settings.launcher!r}, which these commands do not know yet; use "
                f"start_gunicorn.sh --launcher {settings.launcher}"
            )
    except ConfigError as error:
        raise ConfigError(f"{path}: pool {name!r}: {error}") from None
    return Wanted(name, path, values, dict(overlay), settings)


def _file_of_package(model: str) -> str:
    """package:NAME/FILE, a file that came with a Python package; which is found, not imported."""
    package, _, file = model.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    for folder in (spec and spec.submodule_search_locations) or ():
        if file and (Path(folder) / file).exists():
            return str(Path(folder) / file)
    raise ConfigError(
        f"model_name is {model!r}, but there is no such file in this Python environment; install "
        f"the package {package!r}, or give a path"
    )


def _refuse_shared_ports(path: Path, found: list[Wanted]) -> None:
    taken: dict[int, Wanted] = {}
    for wanted in found:
        port = wanted.settings.port
        other = taken.setdefault(port, wanted)
        if other is not wanted:
            why = (
                " (PORT in the environment wins over the file)" if "port" in wanted.overlay else ""
            )
            raise ConfigError(
                f"{path}: pools {other.name!r} and {wanted.name!r} both have port {port}{why}; "
                "give each its own"
            )
