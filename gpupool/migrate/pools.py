"""Drafts made into the pools of a pool.yaml, and its text (pure; the import command)."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gpupool.migrate.keys import ENGINE_ARGS, Draft
from gpupool.migrate.llama_cpp_args import settle_context
from gpupool.setting_types import HOSTED
from gpupool.settings import Settings

NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")
HEAD = "# Written by `gpupool import`."


@dataclass(frozen=True, slots=True)
class Imported:
    """What came of a foreign form. With refusals the pools are not to be used."""

    pools: dict[str, dict[str, Any]]
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()


def finish(drafts: Iterable[Draft], port: int | None = None) -> Imported:
    """The pools of the drafts. `port` is the one that the predecessor took by itself; pools
    after the first get the ports after it."""
    drafts = list(drafts)
    pools: dict[str, dict[str, Any]] = {}
    for index, draft in enumerate(drafts):
        _settle_sizes(draft)
        settle_context(draft)
        if not draft.values.get("model_name"):
            draft.refusals.append("no model: nothing says which one is to be served")
        if port is not None:
            draft.values.setdefault("port", port + index)
        elif index:
            draft.values.setdefault("port", Settings.model_fields["port"].default + index)
        if "workers" not in draft.values and not draft.is_everywhere:
            draft.values["workers"] = 1
            draft.notes.append("one replica, as before: leave `workers` out to use every GPU")
        if "host" not in draft.values:
            host = Settings.model_fields["host"].default
            draft.notes.append(f"no host was given: the pool listens on {host} only")
        pools[_free_name(draft, pools)] = _ordered(draft)
    return Imported(
        pools,
        tuple(dict.fromkeys(note for draft in drafts for note in draft.notes)),
        tuple(dict.fromkeys(line for draft in drafts for line in draft.commands)),
        tuple(dict.fromkeys(reason for draft in drafts for reason in draft.refusals)),
    )


def _settle_sizes(draft: Draft) -> None:
    """GPUs per worker, of what was said of them in one way or another."""
    sizes = {} if draft.engine == HOSTED else draft.sizes
    cut = {name: max(1, sizes[name]) for name in ("tensor", "pipeline") if name in sizes}
    engine = cut.get("tensor", 1) * cut.get("pipeline", 1)
    gpus = sizes.get("gpus", engine if cut else None)
    if gpus is None:
        return
    if cut and gpus != engine:
        draft.refusals.append(
            f"a replica has {gpus} GPU(s), but tensor x pipeline parallelism makes {engine} for "
            "its engine; make both the same"
        )
    if gpus == 0:
        draft.values.setdefault("cuda_visible_devices", "")
        return
    draft.values.setdefault("per_proc_gpus", gpus)
    if cut.get("pipeline", 1) > 1:
        draft.add("--tensor-parallel-size", cut.get("tensor", 1))
        draft.add("--pipeline-parallel-size", cut["pipeline"])


def _ordered(draft: Draft) -> dict[str, Any]:
    """The settings in the order of --help."""
    values = {name: draft.values[name] for name in Settings.model_fields if name in draft.values}
    return values | ({ENGINE_ARGS: draft.words} if draft.words else {})


def _free_name(draft: Draft, taken: Iterable[str]) -> str:
    wanted = draft.name or str(draft.values.get("model_name", "")).rstrip("/").rpartition("/")[2]
    name = NOT_IN_A_NAME.sub("-", wanted).lstrip("._-")[:56] or "pool"
    free, count = name, 2
    while free in taken:
        free, count = f"{name}-{count}", count + 1
    return free


def render(imported: Imported, file: str = "pool.yaml") -> str:
    """The text of a file that is to be called so. JSON's scalars and lists are YAML's, and say what
    they are."""
    lines = [HEAD]
    if imported.commands:
        lines += ["#", "# Start it so:"]
        lines += [
            f"#   {line}" for line in (*imported.commands, f"gpupool run -f {shlex.quote(file)}")
        ]
    if imported.notes:
        lines += ["#", "# What is no setting here:"]
        lines += [f"# - {note}" for note in imported.notes]
    lines.append("models:")
    for name, values in imported.pools.items():
        lines.append(f"  {name if name[0].isalpha() else json.dumps(name)}:")
        lines += [f"    {key}: {_scalar(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _scalar(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
