"""byzerllm's command lines and the files of its --file (pure; the import command)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpupool.errors import ConfigError
from gpupool.migrate import llama_cpp_args, vllm_args
from gpupool.migrate.byzerllm_keys import (
    DEPLOY,
    NO_ADDRESS,
    NO_RAY,
    NO_SPEECH,
    NO_STORE,
    PARAMS,
    SERVE,
    TEMPLATE,
    VARIABLES,
)
from gpupool.migrate.keys import Draft, apply, find_row, shown
from gpupool.migrate.pools import Imported, finish
from gpupool.nearest import nearest_hint

PORT = 8000
COMMANDS = ("deploy", "serve", "undeploy", "stat", "query", "storage")
VARIABLE = re.compile(r"\{\{\s*(\w+)\s*\}\}")
LAST = ("worker_concurrency", "infer_params")
"""Keys that depend on the engine."""

KNOWN = {
    "deploy": {key.name for key in DEPLOY} | {"infer_params"},
    "serve": {key.name for key in SERVE},
    "undeploy": {"ray_address", "model", "force"},
    "stat": {"ray_address", "model", "interval"},
    "query": {"ray_address", "model", "query", "template", "output_file"},
}
SWITCHES = {"force", "allow_credentials"}
Load = Callable[[Path], Any]


@dataclass(frozen=True, slots=True)
class Command:
    """One command line: its name and its flags, those of --file over those of the line."""

    name: str
    flags: dict[str, Any]


def is_byzerllm(content: Any) -> bool:
    """Whether a YAML file is one of --file: flags of deploy."""
    return isinstance(content, dict) and bool(content) and "model" in content


def read_command(words: Sequence[str], environ: Mapping[str, str], load: Load) -> Command:
    """A command line without the word byzerllm; ConfigError for what does not parse."""
    name, *rest = words or [""]
    if name == "storage":
        raise ConfigError(f"byzerllm storage: {NO_STORE}")
    if name not in KNOWN:
        raise ConfigError(f"byzerllm {name}: not a known command{nearest_hint(name, COMMANDS)}")
    flags = _read_flags(name, rest)
    file = flags.pop("file", None)
    if file is not None:
        content = load(Path(str(file)))
        if not isinstance(content, dict):
            raise ConfigError(f"{file}: write flags of `byzerllm {name}` into it")
        flags |= from_file(content, environ)
    return Command(name, flags)


def read_easy_command(words: Sequence[str]) -> Command:
    """A command line of easy-byzerllm, without that word."""
    if len(words) >= 2 and words[0] == "undeploy":
        return Command("undeploy", {"model": words[1]})
    if len(words) >= 3 and words[0] == "chat":
        return Command("query", {"model": words[1], "query": words[2]})
    if words[:1] == ["deploy"]:
        raise ConfigError(f"easy-byzerllm deploy: {NO_ADDRESS}")
    raise ConfigError("easy-byzerllm: not a known command; it has deploy, undeploy and chat")


def from_file(content: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """The flags of a file, `ENV {{NAME}}` replaced by the variable."""
    flags = {}
    for key, value in content.items():
        if isinstance(value, str) and value.startswith("ENV"):
            value = VARIABLE.sub(lambda found: _variable(found[1], environ), value[3:].strip())
        if key != "file":
            flags[str(key)] = value
    return flags


def _variable(name: str, environ: Mapping[str, str]) -> str:
    if name not in environ:
        raise ConfigError(f"ENV {{{{{name}}}}}: there is no such variable; export it first")
    return environ[name]


def _read_flags(command: str, words: Sequence[str]) -> dict[str, Any]:
    flags: dict[str, Any] = {}
    left = list(words)
    while left:
        word, has_value, value = left.pop(0).partition("=")
        name = word.removeprefix("--").replace("-", "_")
        if not word.startswith("--") or name not in KNOWN[command] | {"file"}:
            hint = nearest_hint(name, KNOWN[command])
            raise ConfigError(f"byzerllm {command} {word}: not a known flag{hint}")
        if name in SWITCHES:
            flags[name] = True
        elif name == "infer_params":
            pairs = [value] if has_value else []
            while left and not left[0].startswith("--"):
                pairs.append(left.pop(0))
            flags[name] = _read_params(pairs)
        elif has_value or left:
            flags[name] = value if has_value else left.pop(0)
        else:
            raise ConfigError(f"byzerllm {command} {word}: give a value")
    return flags


def _read_params(pairs: Iterable[str]) -> dict[str, str]:
    params = {}
    for pair in (part for word in pairs for part in shlex.split(word)):
        name, has_value, value = pair.partition("=")
        if not has_value:
            raise ConfigError(f"byzerllm deploy --infer_params {name}: write NAME=VALUE")
        params[name] = value
    return params


def read(commands: Sequence[Command], variables: Mapping[str, str]) -> Imported:
    """The pools of the deploy commands, with what serve says of all of them."""
    served = [command for command in commands if command.name == "serve"]
    drafts = [_deployed(c.flags) for c in commands if c.name == "deploy"]
    ours = [(name, value) for name, value in variables.items() if find_row(VARIABLES, name)]
    for index, draft in enumerate(drafts):
        for command in served:
            flags = dict(command.flags)
            if "served_model_name" in draft.values:
                flags.pop("served_model_name", None)  # the model's own name, as deployed
            apply(draft, SERVE, flags.items(), "serve --")
        apply(draft, VARIABLES, ours)
        if "port" in draft.values:
            draft.values["port"] += index
    return finish(drafts or [Draft()], PORT if served else None)


def _deployed(flags: Mapping[str, Any]) -> Draft:
    draft = Draft()
    first = [(name, value) for name, value in flags.items() if name not in LAST]
    apply(draft, DEPLOY, first, "deploy --")
    draft.values.setdefault("infer_type", draft.engine)
    params = flags.get("infer_params") or {}
    try:
        params = _read_params([params]) if isinstance(params, str) else dict(params)
    except (TypeError, ValueError):
        draft.refusals.append("deploy --infer_params: write NAME=VALUE, or a mapping")
        params = {}
    _take_params(draft, params)
    if "worker_concurrency" in flags:
        given = [("worker_concurrency", flags["worker_concurrency"])]
        apply(draft, DEPLOY, given, "deploy --")
    return draft


def _take_params(draft: Draft, params: Mapping[str, Any]) -> None:
    where = "deploy --infer_params "
    tables = {"vllm": vllm_args.KEYS, "llama_cpp": llama_cpp_args.OF_PYTHON}
    for name, value in params.items():
        if find_row(PARAMS, name) is not None:
            apply(draft, PARAMS, [(name, value)], where)
        elif name.startswith("backend.") and draft.engine == "vllm":
            plain = name.removeprefix("backend.").replace("-", "_")
            apply(draft, tables["vllm"], [(plain, _typed(value))], f"{where}backend.")
        elif not name.startswith("backend.") and draft.engine == "llama_cpp":
            apply(draft, tables["llama_cpp"], [(name, value)], where)
        else:
            draft.refusals.append(f"{where}{name} {shown(value, name)}: not of {draft.engine}")


def _typed(value: Any) -> Any:
    """Parameters come as words."""
    return {"true": True, "false": False}.get(str(value).lower(), value)


def in_our_words(command: Command) -> str:
    """What undeploy, query and a repeated stat are called here, as a shell line."""
    flags = command.flags
    name = str(flags.get("model", ""))
    if not name:
        raise ConfigError(f"byzerllm {command.name}: give --model")
    if flags.get("ray_address", "auto") not in ("auto", "local"):
        raise ConfigError(f"byzerllm {command.name} --ray_address: {NO_RAY}")
    if command.name == "undeploy":
        return shlex.join(["gpupool", "stop", name])
    if command.name == "stat":
        return shlex.join(["gpupool", "status", name, "--watch"])
    template = flags.get("template", "auto")
    if template not in ("auto", "default"):
        raise ConfigError(f"byzerllm query --template {template}: {TEMPLATE}")
    output = str(flags.get("output_file") or "")
    if output.endswith((".mp3", ".wav")):
        raise ConfigError(f"byzerllm query --output_file {output}: {NO_SPEECH}")
    line = shlex.join(["gpupool", "query", name, str(flags.get("query", ""))])
    return f"{line} > {shlex.quote(output)}" if output else line
