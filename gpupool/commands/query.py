"""`gpupool query`: asks a model one thing, without curl (a process of its own)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from gpupool.commands.names import complete
from gpupool.commands.spelling import flag
from gpupool.errors import ConfigError
from gpupool.nearest import nearest_hint
from gpupool.pools.asking import TIMEOUT, NotAnswered, Question, ask
from gpupool.pools.look import client, refuse_ended
from gpupool.pools.record import Record, read_records
from gpupool.refusal import ERROR

EXIT_NOT_ANSWERED = 1


def query(
    model: Annotated[
        str, typer.Argument(help="a pool, or the name of its model", autocompletion=complete)
    ],
    text: Annotated[str | None, typer.Argument(help="what to ask")] = None,
    file: Annotated[
        Path | None, flag("file", "text to ask, or to put after TEXT; - is standard input", "-f")
    ] = None,
    system: Annotated[str, flag("system", "what the model is told beforehand")] = "",
    url: Annotated[
        str | None, flag("url", "ask this server, with the key in GPUPOOL_API_KEY if there is one")
    ] = None,
    max_tokens: Annotated[int, flag("max_tokens", "length of the answer", min=1)] = 512,
    temperature: Annotated[
        float | None, flag("temperature", "0: always the likeliest token", min=0)
    ] = None,
    raw: Annotated[bool, flag("raw", "complete the text, without a chat template")] = False,
) -> None:
    """Ask a model, and print its answer as it comes.

    Exit 1: the server refused, or broke off.
    """
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
    given = tuple((name, value) for name, value in options.items() if value is not None)
    asked, name = _server(model, url)
    question = Question(name, _whole_text(text, file), system, given, is_raw=raw)
    with asked:
        try:
            for piece in ask(asked, question):
                typer.echo(piece, nl=False)
        except NotAnswered as error:
            typer.echo(f"{ERROR}{model}: {error}", err=True)
            raise typer.Exit(EXIT_NOT_ANSWERED) from None
    typer.echo()


def _whole_text(text: str | None, file: Path | None) -> str:
    parts = [] if text is None else [text]
    if file is not None:
        try:
            parts.append(sys.stdin.read() if str(file) == "-" else file.read_text())
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise ConfigError(f"--file {str(file)!r}: {reason}; give a file of text") from None
    if not any(part.strip() for part in parts):
        raise ConfigError('nothing to ask; give a text, as gpupool query MODEL "text", or --file')
    return "\n\n".join(parts)


def _server(model: str, url: str | None) -> tuple[httpx.Client, str]:
    """Whom to ask, and the model's name there."""
    if url is not None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"--url {url!r} is no address; give one as http://host:5002")
        key = os.environ.get("GPUPOOL_API_KEY", "").split(",")[0]
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        base = url.rstrip("/").removesuffix("/v1")
        return httpx.Client(base_url=base, headers=headers, timeout=TIMEOUT), model
    known = _models_here()
    if model not in known:
        for record in read_records():
            if model in (record.name, record.model):
                refuse_ended(record)
        there = f"there is {', '.join(sorted(known))}" if known else "none runs"
        raise ConfigError(
            f"{model!r} is no pool or model that runs here{nearest_hint(model, known)}; {there} "
            "(gpupool run starts one, --url asks elsewhere)"
        )
    record, name = known[model]
    asked = client(record)
    asked.timeout = TIMEOUT
    return asked, name


def _models_here() -> dict[str, tuple[Record, str]]:
    """What may be asked: names of pools, and of their models, each with the model's name there."""
    running = [record for record in read_records() if record.is_running]
    known: dict[str, tuple[Record, str]] = {}
    pools: dict[str, tuple[Record, str]] = {}
    for record in running:
        settings = record.settings()
        served = settings.served_model_name or (settings.model_name,)
        pools[record.name] = (record, served[0])
        for name in served:
            known.setdefault(name, (record, name))
        known.setdefault(settings.model_name, (record, served[0]))
    return known | pools
