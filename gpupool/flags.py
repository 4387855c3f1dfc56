"""The command line made from the settings: the table for start_gunicorn.sh, and its --help.

Runs in a short-lived process before the pool. `python -m gpupool.flags table` prints one line a
spelling: flag, variable, kind (value, switch or list); `help` and `version` what these print;
`explain TEXT` turns getopt's complaint into ours.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gpupool import __version__
from gpupool.engine_flags import KNOWN, where_it_belongs
from gpupool.nearest import nearest
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
    lines.append("  --version\n      print the version\n  --help, -h\n      print this\n")
    return "".join([*lines, TAIL])


def explain(complaint: str) -> str:
    """getopt's complaint with the nearest flag, or the place of an engine's."""
    text = complaint.strip().removeprefix("start_gunicorn.sh: ")
    asked = re.search(r"(?:'--|invalid option -- ')([^'=]+)", text)
    hint = remedy(asked[1], flags()) if asked and "ambiguous" not in text else ""
    return f"{text}{hint}; see start_gunicorn.sh --help"


def remedy(name: str, known: Iterable[Flag]) -> str:
    """What to do about a flag that is none of these, given without its hyphens."""
    first = {spelling: flag.spellings[0] for flag in known for spelling in flag.spellings}
    if name in first:
        return ""
    belonging = where_it_belongs(f"--{name}")
    close = "" if belonging else nearest(name, [*first, *(flag.lstrip("-") for flag in KNOWN)])
    if close in first:
        return f" (did you mean --{first[close]}?)"
    return belonging or (close and f" (did you mean --{close}, after -- ?)")


def main(arguments: list[str]) -> None:
    """Print what the shell asks for."""
    what = arguments[0]
    if what == "table":
        print(render_table(), end="")
    elif what == "help":
        print(render_help(), end="")
    elif what == "version":
        print(f"gpupool {__version__}")
    else:
        print(explain(arguments[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
