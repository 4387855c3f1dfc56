"""FlagScale's command lines: `flagscale serve` and `run.py` (pure; the import command)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpupool.errors import ConfigError
from gpupool.migrate.keys import find_row, refuses

COMMANDS = tuple(
    refuses(name, name, reason)
    for name, reason in (
        ("train", "a pool trains nothing"),
        ("pull", "get the model with `hf download` or `modelscope download`; no image is needed"),
        ("test", "`gpupool query` asks a pool"),
        ("show", "`gpupool run -f pool.yaml --dry-run` shows what would start"),
        ("install", "`pip install gpupool[vllm]` is all there is to install"),
    )
)
"""Of `flagscale`, beside `serve`."""

FLAGS = {"--model-path": "model_path", "--port": "port", "--engine-args": "engine_args"}
"""Of `flagscale serve`, by the key of experiment.runner.cli_args."""


def read_command(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """`flagscale serve MODEL [YAML] [flags]`: the file, and what the flags say of
    experiment.runner.cli_args. ConfigError for what is none of it."""
    command, *rest = words or [""]
    if command != "serve":
        row = find_row(COMMANDS, command)
        raise ConfigError(f"flagscale {command}: {row.refuses if row else 'not a known command'}")
    flags: dict[str, Any] = {}
    names: list[str] = []
    while rest:
        flag, has_value, value = rest.pop(0).partition("=")
        if not flag.startswith("-"):
            names.append(flag)
            continue
        key = FLAGS.get(flag.replace("_", "-"))
        if key is None or not (has_value or rest):
            raise ConfigError(
                f"flagscale serve {flag}: not a known flag; it has {', '.join(FLAGS)}"
            )
        flags[key] = value if has_value else rest.pop(0)
    if not 1 <= len(names) <= 2:
        raise ConfigError("flagscale serve: give the model, and perhaps its file")
    return names[1] if len(names) == 2 else f"examples/{names[0]}/conf/serve.yaml", flags


def read_run(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """`run.py --config-path P --config-name N key=value ...`: the file, and the overrides."""
    folder, name = ".", "config"
    overrides: dict[str, Any] = {}
    left = list(words)
    while left:
        word, _, value = left.pop(0).partition("=")
        if word in ("--config-path", "--config-name", "-cp", "-cn"):
            value = value or (left.pop(0) if left else "")
            folder, name = (value, name) if word in ("--config-path", "-cp") else (folder, value)
        elif word.startswith("-"):
            raise ConfigError(
                f"run.py {word}: not a known flag; --config-path and --config-name are"
            )
        else:
            overrides[word.lstrip("+")] = value
    return f"{folder}/{name.removesuffix('.yaml')}.yaml", overrides
