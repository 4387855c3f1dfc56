"""/v1/embeddings, /tokenize and /detokenize of the pool's own application."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest

from gpupool.engines.base import Chats, Decodes, Embeds
from tests.engines.scripted import ScriptedEngine
from tests.openai.own import Api, serving


def test_vectors_come_in_the_order_of_the_inputs(api: Api) -> None:
    answer = api.ask("/v1/embeddings", input=["a", "bcd"])
    assert [item["embedding"] for item in answer["data"]] == [[1.0, 97.0], [3.0, 98.0]]
    assert [item["index"] for item in answer["data"]] == [0, 1]
    assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


def test_vector_can_be_packed(api: Api) -> None:
    answer = api.ask("/v1/embeddings", input=[98, 99], encoding_format="base64")
    packed = base64.b64decode(answer["data"][0]["embedding"])
    assert struct.unpack("<2f", packed) == (2.0, 98.0)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "a", "dimensions": 1}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({}, "input"),
        ({"input": "a" * 2000}, "input"),
    ],
)
def test_vectors_that_cannot_be_are_400(api: Api, body: dict[str, Any], param: str) -> None:
    assert api.refused("/v1/embeddings", **body)["param"] == param


def test_text_becomes_tokens_and_text_again(api: Api) -> None:
    answer = api.ask("/tokenize", prompt="añb", return_token_strs=True)
    assert (answer["count"], answer["max_model_len"]) == (4, 1000)
    assert answer["tokens"] == list("añb".encode())
    assert (answer["token_strs"][0], answer["token_strs"][3]) == ("a", "b")
    assert api.ask("/detokenize", tokens=answer["tokens"]) == {"prompt": "añb"}


@pytest.mark.parametrize("tokens", [None, "ab", [256], [-1], ["a"], [True]])
def test_tokens_that_are_none_are_400(api: Api, tokens: Any) -> None:
    assert api.refused("/detokenize", tokens=tokens)["param"] == "tokens"


def test_engine_that_offers_nothing_has_completions_and_tokenize() -> None:
    class Plain(ScriptedEngine):
        pass

    with serving(engine_class=Plain) as api:  # type: ignore[arg-type]
        assert not isinstance(api.engine, Decodes | Chats | Embeds)
        assert api.ask("/v1/completions", prompt="ab", max_tokens=2)["choices"][0]["text"] == "ab"
        assert api.ask("/tokenize", prompt="a")["tokens"] == [97]
        for path in ("/v1/chat/completions", "/v1/embeddings", "/detokenize"):
            assert api.refused(path)["code"] == "unsupported"
        error = api.refused("/v1/completions", prompt="a", echo=True, logprobs=1)
        assert error["code"] == "unsupported"
