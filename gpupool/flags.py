"""The command line made from the settings: the table for start_gunicorn.sh, and its --help.

Runs in a short-lived process before the pool. `python -m gpupool.flags table` prints one line a
spelling: flag, variable, kind (value, switch or list); `help` the help; `explain TEXT` turns
getopt's complaint into ours.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gpupool.nearest import nearest_hint
from gpupool.settings import Settings, env_name

HEAD = """\
usage: start_gunicorn.sh --model_name MODEL [flag ...] [-- engine argument ...]

Serve one model on every GPU of this machine, or on its CPU cores, behind one port.
Each flag can also be written with hyphens, or set by the variable in brackets.
Arguments after -- go to the engine's own argument parser unchanged.

"""
TAIL = """
examples:
  start_gunicorn.sh --model_name Qwen/Qwen2.5-7B-Instruct
  start_gunicorn.sh --model_name /models/llama-70b --per_proc_gpus 4 --infer_type vllm \\
      -- --max-model-len 8192
  start_gunicorn.sh --model_name model.gguf --infer_type llama_cpp --workers 2
  start_gunicorn.sh --model_name far-away --infer_type saas \\
      -- --saas.base_url https://host/v1 --saas.api_key_file key
"""


@dataclass(frozen=True, slots=True)
class Flag:
    """One setting on the command line."""

    spellings: tuple[str, ...]
    env: str
    kind: str  # value, switch or list
    metavar: str
    description: str


def flags() -> Iterator[Flag]:
    """Every setting that has a flag, in the order of the settings."""
    for name, field in Settings.model_fields.items():
        extra: dict[str, Any] = field.json_schema_extra or {}  # type: ignore[assignment]
        if extra.get("hidden"):
            continue
        names = [name, name.replace("_", "-"), *extra.get("flags", ())]
        kind = (
            "switch" if field.annotation is bool else "list" if "repeatable" in extra else "value"
        )
        metavar = extra.get("metavar", "VALUE" if field.annotation is str else "N")
        default = field.default
        shown = "" if default in ("", None, False, ()) else f" (default: {default})"
        text = f"{field.description}{shown} [{env_name(name)}]"
        yield Flag(tuple(dict.fromkeys(names)), env_name(name), kind, metavar, text)


def render_table() -> str:
    """Tab-separated lines for the shell."""
    return "".join(
        f"{spelling}\t{flag.env}\t{flag.kind}\n" for flag in flags() for spelling in flag.spellings
    )


def render_help() -> str:
    """What --help prints."""
    lines = [HEAD]
    for flag in flags():
        value = "" if flag.kind == "switch" else f" {flag.metavar}"
        others = [s for s in flag.spellings[1:] if s.replace("-", "_") != flag.spellings[0]]
        also = f", also --{', --'.join(others)}" if others else ""
        lines.append(f"  --{flag.spellings[0]}{value}{also}\n")
        lines.append(textwrap.indent(textwrap.fill(flag.description, 88), "      ") + "\n")
    lines.append("  --help\n      print this\n")
    return "".join([*lines, TAIL])


def explain(complaint: str) -> str:
    """getopt's complaint with the nearest flag."""
    text = complaint.strip().removeprefix("start_gunicorn.sh: ")
    asked = re.search(r"'--([^'=]+)", text)
    known = [spelling for flag in flags() for spelling in flag.spellings]
    hint = nearest_hint(asked[1], known) if asked and asked[1] not in known else ""
    return f"{text}{hint}; see start_gunicorn.sh --help"


def main(arguments: list[str]) -> None:
    """Print what the shell asks for."""
    what = arguments[0]
    if what == "table":
        print(render_table(), end="")
    elif what == "help":
        print(render_help(), end="")
    else:
        print(explain(arguments[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
