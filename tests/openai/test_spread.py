"""A list of prompts as a request for each, and back."""

from __future__ import annotations

from typing import Any

import pytest

from gpupool.api.openai.checks import Ask, check
from gpupool.api.openai.routes import ROUTES
from gpupool.api.openai.spread import merge, split
from tests.openai.client import ABLE, CHAT, COMPLETIONS

ROUTE = ROUTES[COMPLETIONS]


def parts_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    return split(ROUTE, body, check(ROUTE, body, ABLE))


@pytest.mark.parametrize("prompts", [["a", "b"], [[1, 2], [3]]])
def test_each_prompt_is_a_request(prompts: list[Any]) -> None:
    body = {"prompt": prompts, "n": 2, "seed": 1}
    assert parts_of(body) == [{"prompt": prompt, "n": 2, "seed": 1} for prompt in prompts]


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a"},
        {"prompt": ["a"]},
        {"prompt": [1, 2, 3]},
        {"prompt": ["a", "b"], "stream": True},
    ],
)
def test_what_cannot_be_split_stays_whole(body: dict[str, Any]) -> None:
    assert parts_of(body) == []


def test_a_chat_stays_whole() -> None:
    body = {"messages": [{"role": "user", "content": "a"}] * 2}
    assert split(ROUTES[CHAT], body, check(ROUTES[CHAT], body, ABLE)) == []


def answer(name: str, *texts: str, tokens: int = 1) -> dict[str, Any]:
    return {
        "id": name,
        "choices": [{"index": index, "text": text} for index, text in enumerate(texts)],
        "usage": {
            "prompt_tokens": tokens,
            "completion_tokens": 10 * tokens,
            "prompt_tokens_details": {"cached_tokens": tokens},
            "completion_tokens_details": None,
        },
    }


def test_choices_are_numbered_through_and_usage_is_added_up() -> None:
    merged = merge(ROUTE, {}, [answer("x", "a", "b", tokens=1), answer("y", "c", "d", tokens=2)])
    assert [(choice["index"], choice["text"]) for choice in merged["choices"]] == [
        (0, "a"),
        (1, "b"),
        (2, "c"),
        (3, "d"),
    ]
    assert merged["id"] == "x"
    assert merged["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 30,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": None,
    }


def test_embeddings_are_numbered_through() -> None:
    one = {"data": [{"index": 0, "embedding": [1.0]}], "usage": {"prompt_tokens": 1}}
    merged = merge(ROUTES["/v1/embeddings"], {}, [one, one, one])
    assert [item["index"] for item in merged["data"]] == [0, 1, 2]


RERANK = ROUTES["/rerank"]


def ranked(score: float) -> dict[str, Any]:
    """What an engine says of one document."""
    result = {"index": 0, "relevance_score": score, "document": {"text": str(score)}}
    return {"id": "x", "results": [result], "usage": {"prompt_tokens": 4, "total_tokens": 4}}


def test_each_document_is_ranked_by_itself() -> None:
    body = {"query": "q", "documents": ["a", "b"], "top_n": 1}
    expected = [{"query": "q", "documents": [text], "top_n": 1} for text in "ab"]
    assert split(RERANK, body, Ask(2, stream=False, wants_usage=False)) == expected


def test_the_best_document_comes_first_and_of_equal_ones_the_first() -> None:
    merged = merge(RERANK, {}, [ranked(score) for score in (0.1, 0.5, 0.9, 0.5)])
    assert [result["index"] for result in merged["results"]] == [2, 1, 3, 0]
    assert merged["results"][0]["document"] == {"text": "0.9"}
    assert merged["usage"] == {"prompt_tokens": 16, "total_tokens": 16}


@pytest.mark.parametrize(
    ("top_n", "expected"), [(1, [1]), (None, [1, 0]), (0, [1, 0]), (5, [1, 0])]
)
def test_only_the_best_documents_are_told_if_asked(top_n: int | None, expected: list[int]) -> None:
    merged = merge(RERANK, {"top_n": top_n}, [ranked(0.1), ranked(0.5)])
    assert [result["index"] for result in merged["results"]] == expected
