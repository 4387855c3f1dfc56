"""A list of prompts or documents -> a request for each, and their answers -> one (pure; worker
process).

What is independent of each other may run on different workers, and be tried again elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpupool.api.openai.checks import Ask, Body
from gpupool.api.openai.content import is_many
from gpupool.api.openai.routes import Route

Json = dict[str, Any]


def split(route: Route, body: Body, ask: Ask) -> list[Body]:
    """A body for each item; empty where the request stays whole: it has no list, or it is
    streamed, and its events are the engine's to interleave."""
    if route.list_field is None or ask.stream:
        return []
    items = body.get(route.list_field)
    if not is_many(items) or not isinstance(items, list) or len(items) < 2:
        return []
    if route.kind == "rerank":
        return [{**body, "documents": [item]} for item in items]
    return [{**body, route.list_field: item} for item in items]


def merge(route: Route, body: Body, answers: Sequence[Json]) -> Json:
    """The answer to all of `body`, as if it had not been split."""
    if route.kind == "rerank":
        name, merged = "results", _ranked(answers, body.get("top_n"))
    else:
        name = "data" if route.kind == "embedding" else "choices"
        merged = _numbered(answers, name)
    return {**answers[0], name: merged, "usage": _added([answer["usage"] for answer in answers])}


def _numbered(answers: Sequence[Json], name: str) -> list[Json]:
    merged: list[Json] = []
    for answer in answers:
        first = len(merged)
        merged += [{**item, "index": first + item["index"]} for item in answer[name]]
    return merged


def _ranked(answers: Sequence[Json], top_n: int | None) -> list[Json]:
    """The best document first; of equal ones the one that was sent first."""
    results = [{**answer["results"][0], "index": index} for index, answer in enumerate(answers)]
    results.sort(key=lambda result: result["relevance_score"], reverse=True)
    return results[: top_n or None]


def _added(usages: Sequence[Json]) -> Json:
    """Numbers summed up, also those of inner objects; anything else is the first one's."""
    total: Json = {}
    for key, value in usages[0].items():
        values = [usage.get(key) for usage in usages]
        if isinstance(value, int):
            total[key] = sum(number for number in values if isinstance(number, int))
        elif isinstance(value, dict):
            total[key] = _added([inner for inner in values if isinstance(inner, dict)])
        else:
            total[key] = value
    return total
