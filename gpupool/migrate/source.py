"""What `gpupool import` is given, a file or a predecessor's command line, and who reads it (the
import command). Reads files and nothing else; nothing that it is given is run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from gpupool.errors import ConfigError
from gpupool.migrate import byzerllm, flagscale, hydra, oci
from gpupool.migrate.flagscale_command import read_command, read_run
from gpupool.migrate.pools import Imported

VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
ASSIGNMENT = re.compile(r"(?:export\s+)?[A-Za-z_]\w*=")
PROGRAMS = ("byzerllm", "easy-byzerllm", "flagscale", "ads", "python run.py")
ADS = ["ads", "aqua", "deployment"]
KINDS = (
    "FlagScale's serve YAML, a YAML file of byzerllm's --file, an environment of an Oracle model "
    "deployment, or a shell script with the command lines of these"
)


@dataclass(frozen=True, slots=True)
class Found:
    """What a source holds: pools, or else the same command in our words, or a question for the
    model that runs."""

    imported: Imported | None = None
    line: str = ""
    stat: str = ""


def read_file(path: Path, environ: Mapping[str, str]) -> Found:
    """Read a file of whichever kind it is."""
    text = _read(path)
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if _commands(text):
        return _read_script(text, environ)
    if lines and all(ASSIGNMENT.match(line.strip()) for line in lines):
        return Found(oci.read(oci.read_env_file(text)))
    content = _parse(path, text)
    if flagscale.is_flagscale(content) or isinstance(content, dict) and "defaults" in content:
        return Found(flagscale.read(hydra.compose(path, content, load)))
    if oci.is_oci(content):
        return Found(oci.read(content))
    if byzerllm.is_byzerllm(content):
        command = byzerllm.Command("deploy", byzerllm.from_file(content, environ))
        return Found(byzerllm.read([command], {}))
    raise ConfigError(f"{path}: cannot tell what it is; it may be {KINDS}")


def read_words(words: Sequence[str], environ: Mapping[str, str]) -> Found:
    """Read one command line of a predecessor."""
    program, *rest = words
    if program == "byzerllm":
        return _byzerllm(byzerllm.read_command(rest, environ, load))
    if program == "easy-byzerllm":
        return _byzerllm(byzerllm.read_easy_command(rest))
    if program == "flagscale":
        file, flags = read_command(rest)
        return _flagscale(file, {f"experiment.runner.cli_args.{k}": v for k, v in flags.items()})
    if (script := _run_script(words)) is not None:
        file, overrides = read_run(script)
        return _flagscale(file, {k: yaml.safe_load(v) for k, v in overrides.items()})
    if list(words[:4]) == [*ADS, "create"]:
        return Found(oci.read_command(words[4:]))
    if list(words[:4]) == [*ADS, "recommend_shape"]:
        return Found(line=oci.recommended(words[4:]))
    raise ConfigError(
        f"{shlex.join(words)!r}: neither a file nor a command line that begins with "
        f"{', '.join(PROGRAMS)}"
    )


def load(path: Path) -> Any:
    """A YAML file's content."""
    return _parse(path, _read(path))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"{path}: {reason}; give {KINDS}") from None


def _parse(path: Path, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def _run_script(words: Sequence[str]) -> list[str] | None:
    """The words after run.py, of `python run.py ...`."""
    for index, word in enumerate(words[:2]):
        if word.rpartition("/")[2] == "run.py":
            return list(words[index + 1 :])
    return None


def _byzerllm(command: byzerllm.Command) -> Found:
    if command.name in ("deploy", "serve"):
        return Found(byzerllm.read([command], {}))
    if command.name == "stat" and str(command.flags.get("interval", 0)) in ("0", "0.0"):
        return Found(stat=str(command.flags.get("model", "")))
    return Found(line=byzerllm.in_our_words(command))


def _flagscale(file: str, overrides: Mapping[str, Any]) -> Found:
    path = Path(file)
    config = hydra.compose(path, load(path), load)
    config = {"serve": config} if isinstance(config, list) else config
    for name, value in overrides.items():
        hydra.override(config, name, value)
    return Found(flagscale.read(config))


def _commands(text: str) -> list[str]:
    """The lines of a script that are commands of a predecessor."""
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if re.match(r"(easy-)?byzerllm |flagscale |ads aqua ", line)]


def _read_script(text: str, environ: Mapping[str, str]) -> Found:
    variables: dict[str, str] = {}

    def expand(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        known = {**environ, **variables}
        if name not in known:
            raise ConfigError(f"${name}: there is no such variable; export it first")
        return known[name]

    commands: list[byzerllm.Command] = []
    others: list[Found] = []
    left: list[str] = []
    for line in text.replace("\\\n", " ").splitlines():
        if ASSIGNMENT.match(line.strip()):
            variables |= oci.read_env_file(VARIABLE.sub(expand, line))
        elif _commands(line):
            words = shlex.split(VARIABLE.sub(expand, line), comments=True)
            if words[0] == "byzerllm":
                commands.append(byzerllm.read_command(words[1:], environ, load))
            else:
                others.append(read_words(words, environ))
        elif line.strip() and not line.lstrip().startswith("#"):
            left.append(f"stays in your script: {line.strip()}")
    pools = [command for command in commands if command.name in ("deploy", "serve")]
    started = [found.imported for found in others if found.imported is not None]
    if pools:
        started.append(byzerllm.read(pools, variables))
    if len(started) != 1:
        raise ConfigError(
            f"the script starts {len(started)} services; give its lines one by one after --"
        )
    return Found(replace(started[0], notes=(*started[0].notes, *left)))
