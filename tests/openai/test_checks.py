"""What a body of the OpenAI API may ask for; each row is one request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpupool.api.openai.checks import Able, Ask, check
from gpupool.api.openai.routes import ROUTES
from gpupool.errors import RequestError
from tests.openai.chats import (
    CHATS,
    GOOD,
    HELLO,
    PICTURE,
    PROMPT,
    content,
)
from tests.openai.client import ABLE, CHAT, COMPLETIONS

REFUSED = {name: row for name, row in CHATS.items() if row[1] is not None}


@pytest.mark.parametrize(("change", "param"), REFUSED.values(), ids=REFUSED.keys())
def test_a_chat_is_refused_and_what_is_wrong_is_named(change: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        check(ROUTES[CHAT], HELLO | change, ABLE)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize("change", GOOD.values(), ids=GOOD.keys())
def test_a_chat_that_can_be_is_let_through(change: dict[str, Any]) -> None:
    check(ROUTES[CHAT], HELLO | change, ABLE)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": [{"role": "user", "content": PICTURE}]}),
        ("/v1/responses", {"input": [{"type": "computer_call_output", "output": PICTURE[0]}]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": [{"content": PICTURE}]}]}),
        ("/rerank", {"query": "a", "documents": [{"content": PICTURE}]}),
        ("/score", {"data_1": {"content": PICTURE}, "data_2": "b"}),
        ("/tokenize", {"messages": [{"role": "user", "content": PICTURE}]}),
        ("/pooling", {"messages": [{"role": "user", "content": PICTURE}]}),
    ],
)
def test_by_no_route_a_picture_is_fetched(path: str, body: dict[str, Any]) -> None:
    able = replace(ABLE, fields={path: frozenset(body)})
    with pytest.raises(RequestError, match="data: URL"):
        check(ROUTES[path], body, able)
    check(ROUTES[path], body, replace(able, media_by_url=True))


def test_a_responses_input_is_one_text_however_many_items_it_has() -> None:
    item = {"role": "user", "content": "a" * 30_000}
    able = replace(ABLE, fields={"/v1/responses": frozenset({"input"})})
    check(ROUTES["/v1/responses"], {"input": [item]}, able)
    with pytest.raises(RequestError) as caught:
        check(ROUTES["/v1/responses"], {"input": [item, item]}, able)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("field", ["text", "output_config"])
def test_formats_of_other_apis_are_measured_too(field: str) -> None:
    able = replace(ABLE, fields={"/v1/responses": frozenset({"input", field})})
    body = {"input": "a", field: {"format": {"type": "json_schema", "schema": {"minItems": 9999}}}}
    with pytest.raises(RequestError, match="minItems 9999"):
        check(ROUTES["/v1/responses"], body, able)


def test_a_token_that_is_none_is_not_decoded() -> None:
    able = replace(ABLE, fields={"/detokenize": frozenset({"tokens"})})
    check(ROUTES["/detokenize"], {"tokens": [0, 999]}, able)
    for tokens in ([1000], [-1], ["a"], "a"):
        with pytest.raises(RequestError) as caught:
            check(ROUTES["/detokenize"], {"tokens": tokens}, able)
        assert caught.value.param == "tokens"


def test_a_picture_may_come_from_where_the_operator_said() -> None:
    picture = content({"type": "image_url", "image_url": {"url": "http://pictures/1"}})
    check(ROUTES[CHAT], picture, replace(ABLE, media_by_url=True))


COMPLETIONS_REFUSED = {
    "no prompt": ({"prompt": None}, "prompt"),
    "a prompt of a number": ({"prompt": 5}, "prompt"),
    "prompts of numbers and text": ({"prompt": ["a", 5]}, "prompt[1]"),
    "no tokens": ({"prompt": [[]]}, "prompt[0]"),
    "a token that is none": ({"prompt": [[1, 1000]]}, "prompt[0]"),
    "more tokens than the context": ({"prompt": [1] * 101}, "prompt"),
    "2049 prompts": ({"prompt": ["a"] * 2049}, "prompt"),
    "2049 streams": ({"prompt": ["a"] * 683, "n": 3, "stream": True}, "n"),
    "logprobs of true": ({"logprobs": True}, "logprobs"),
    "logprobs of 21": ({"logprobs": 21}, "logprobs"),
    "max_tokens of 0 without echo": ({"max_tokens": 0}, "max_tokens"),
}


@pytest.mark.parametrize(
    ("change", "param"), COMPLETIONS_REFUSED.values(), ids=COMPLETIONS_REFUSED.keys()
)
def test_a_completion_is_refused_and_what_is_wrong_is_named(
    change: dict[str, Any], param: str
) -> None:
    with pytest.raises(RequestError) as caught:
        check(ROUTES[COMPLETIONS], PROMPT | change, ABLE)
    assert (caught.value.status, caught.value.param) == (400, param)


ASKS = {
    "one": ({}, Ask(1, stream=False, wants_usage=False)),
    "some of each": ({"prompt": ["a", "b"], "n": 3}, Ask(6, stream=False, wants_usage=False)),
    "tokens": ({"prompt": [1, 2, 3]}, Ask(1, stream=False, wants_usage=False)),
    "lists of tokens": ({"prompt": [[1], [2]]}, Ask(2, stream=False, wants_usage=False)),
    "a stream": ({"stream": True}, Ask(1, stream=True, wants_usage=False)),
    "a stream with usage": (
        {"stream": True, "stream_options": {"include_usage": True}},
        Ask(1, stream=True, wants_usage=True),
    ),
    "echo alone": ({"echo": True, "max_tokens": 0}, Ask(1, stream=False, wants_usage=False)),
}


@pytest.mark.parametrize(("change", "ask"), ASKS.values(), ids=ASKS.keys())
def test_what_is_asked_for_is_understood(change: dict[str, Any], ask: Ask) -> None:
    assert check(ROUTES[COMPLETIONS], PROMPT | change, ABLE) == ask


NEEDS = {
    "seed": ({"seed": 1}, "seed"),
    "stop": ({"stop": "a"}, "stop"),
    "logprobs": ({"logprobs": True}, "logprobs"),
    "logit_bias": ({"logit_bias": {"1": 1}}, "logit_bias"),
}


@pytest.mark.parametrize(("change", "feature"), NEEDS.values(), ids=NEEDS.keys())
def test_what_the_engine_cannot_do_is_refused_and_not_dropped(
    change: dict[str, Any], feature: str
) -> None:
    unable = Able(ABLE.features - {feature}, ABLE.fields, ABLE.model, ABLE.model_names)
    check(ROUTES[CHAT], HELLO | change, ABLE)
    with pytest.raises(RequestError) as caught:
        check(ROUTES[CHAT], HELLO | change, unable)
    assert caught.value.code == "unsupported"


def test_an_unknown_field_is_answered_with_the_nearest_known_one() -> None:
    with pytest.raises(RequestError, match="did you mean 'temperature'"):
        check(ROUTES[CHAT], HELLO | {"temprature": 1}, ABLE)


RERANK = "/v1/rerank"
ABLE_TO_RANK = replace(
    ABLE,
    fields={RERANK: frozenset({"query", "documents", "top_n", "return_documents"})},
)


def test_every_document_is_a_sequence_of_its_own() -> None:
    ask = check(ROUTES[RERANK], {"query": "a", "documents": ["b", "c", "d"]}, ABLE_TO_RANK)
    assert ask.num_sequences == 3


@pytest.mark.parametrize(
    "change",
    [{"top_n": -1}, {"return_documents": "yes"}, {"documents": ["a"] * 2049}, {"max_chunks": 1}],
    ids=lambda change: next(iter(change)),
)
def test_what_cannot_be_asked_of_documents_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        check(ROUTES[RERANK], {"query": "a", "documents": ["b"]} | change, ABLE_TO_RANK)
    assert caught.value.param == next(iter(change))
