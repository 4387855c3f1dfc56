"""The prompts of a body as token ids (worker process, any thread)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpupool.api.openai.content import is_many
from gpupool.engines.base import Engine
from gpupool.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Prompt:
    """One text to go on from, or to embed."""

    param: str
    tokens: list[int]
    text: str | None  # None: it was given as tokens


def read_prompts(engine: Engine, body: dict[str, Any], name: str) -> list[Prompt]:
    """All of a field, which has been checked to hold texts or token ids. May block."""
    given = body.get(name)
    if given is None or given == []:
        raise BadRequest(f"{name} is missing; send a text, or a list of them", param=name)
    if not is_many(given):
        return [_read(engine, name, given)]
    return [_read(engine, f"{name}[{index}]", item) for index, item in enumerate(given)]


def _read(engine: Engine, param: str, given: Any) -> Prompt:
    if isinstance(given, list):
        return Prompt(param, given, None)
    if not isinstance(given, str):
        raise BadRequest(f"{param} must be a text or a list of token ids", param=param)
    tokens = engine.tokenize(given)
    if not tokens:
        raise BadRequest(f"{param} has no tokens", param=param)
    return Prompt(param, tokens, given)
