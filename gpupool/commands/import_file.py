"""`gpupool import`: a predecessor's file or command line as a pool.yaml (a process of its own)."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from gpupool.commands.spelling import flag
from gpupool.errors import ConfigError
from gpupool.migrate.byzerllm_stat import as_stat
from gpupool.migrate.pools import Imported, render
from gpupool.migrate.source import read_file, read_words
from gpupool.refusal import ERROR, EXIT_REFUSED

TIMEOUT_S = 10.0


def import_file(
    source: Annotated[
        list[str],
        typer.Argument(
            help="FlagScale's serve YAML, byzerllm's --file, an Oracle deployment's environment; "
            "or after --, the command line as it was: -- byzerllm deploy --model_path ...",
        ),
    ],
    output: Annotated[Path | None, flag("output", "write there instead of printing", "-o")] = None,
    without: Annotated[
        list[str] | None, flag("without", "leave this refused key out; repeatable")
    ] = None,
    url: Annotated[
        str, flag("url", "the pool that `byzerllm stat` asks")
    ] = "http://127.0.0.1:5002",
) -> None:
    """What other programs were told, as a pool.yaml; what cannot be is said, all of it."""
    is_file = len(source) == 1 and " " not in source[0]
    found = read_file(Path(source[0]), os.environ) if is_file else read_words(source, os.environ)
    if found.imported is None:
        typer.echo(found.line or json.dumps(_ask(url, found.stat), indent=4))
        return
    imported = _leave_out(found.imported, without or [])
    if imported.refusals:
        for reason in imported.refusals:
            typer.echo(f"{ERROR}{reason}", err=True)
        raise typer.Exit(EXIT_REFUSED)
    _write(output, render(imported, str(output or "pool.yaml")))


def _leave_out(imported: Imported, keys: list[str]) -> Imported:
    """What is refused has no effect: leaving it out is no more than not to insist on it."""
    refusals, notes = list(imported.refusals), list(imported.notes)
    for key in keys:
        dropped = [r for r in refusals if r.startswith((f"{key} ", f"{key}:"))]
        if not dropped:
            raise ConfigError(f"--without {key}: nothing of this name is refused")
        refusals = [reason for reason in refusals if reason not in dropped]
        notes += [f"left out: {reason}" for reason in dropped]
    return replace(imported, refusals=tuple(refusals), notes=tuple(notes))


def _write(output: Path | None, text: str) -> None:
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        # For this user alone: it may hold API keys.
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(
            f"--output {str(output)!r}: {error.strerror}; give a file that is not there yet"
        ) from None
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _ask(url: str, model: str) -> dict[str, Any]:
    """What byzerllm would say of the model that a pool serves."""
    key = os.environ.get("GPUPOOL_API_KEY", "").partition(",")[0]
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(f"{url}/pool", headers=headers, timeout=TIMEOUT_S, trust_env=False)
        return as_stat(answer.raise_for_status().json())
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ConfigError(
            f"byzerllm stat --model {model}: {url}/pool does not answer ({error}); give the pool's "
            "address by --url, and its key by GPUPOOL_API_KEY"
        ) from None
