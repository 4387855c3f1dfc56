"""The document of what is served says what holds."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from gpupool.api.openai.checks import check
from gpupool.api.openai.routes import ROUTES
from gpupool.api.openapi import describe
from gpupool.errors import RequestError
from tests.openai.chats import GOOD, HELLO, PROMPT
from tests.openai.client import ABLE
from tests.openai.test_checks import COMPLETIONS_REFUSED, REFUSED
from tests.test_app import make_client

DOCUMENT = describe(ABLE)


def schema(path: str) -> Draft202012Validator:
    body = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    Draft202012Validator.check_schema(body)
    return Draft202012Validator(body)


def test_every_route_of_the_engine_is_there() -> None:
    assert set(ABLE.fields) < set(DOCUMENT["paths"])
    assert {"/infer", "/livez", "/v1/models"} < set(DOCUMENT["paths"])


def test_without_an_engine_of_its_own_api_the_rest_is_there() -> None:
    assert "/v1/chat/completions" not in describe(None)["paths"]
    assert "/infer" in describe(None)["paths"]


@pytest.mark.parametrize("change", GOOD.values(), ids=GOOD.keys())
def test_what_is_let_through_fits_the_document(change: dict[str, Any]) -> None:
    assert schema("/v1/chat/completions").is_valid(HELLO | change)


@pytest.mark.parametrize("name", ["temperature", "n of 0", "seed of 65 bits", "an unknown field"])
def test_what_is_refused_does_not_fit_it(name: str) -> None:
    assert not schema("/v1/chat/completions").is_valid(HELLO | REFUSED[name][0])


@pytest.mark.parametrize("name", ["no prompt", "a prompt of a number", "logprobs of 21"])
def test_completions_have_theirs(name: str) -> None:
    route = ROUTES["/v1/completions"]
    body = PROMPT | COMPLETIONS_REFUSED[name][0]
    with pytest.raises(RequestError):
        check(route, body, ABLE)
    assert not schema(route.path).is_valid(body)


def test_it_is_served() -> None:
    document = make_client().get("/openapi.json").json
    assert document["openapi"].startswith("3.1")
    assert document["paths"]["/infer"]["post"]["requestBody"]["required"] is True


def test_the_body_of_infer_fits_it() -> None:
    infer = schema("/infer")
    assert infer.is_valid({"instances": ["a"], "params": {"max_tokens": 5, "stop": None}})
    assert not infer.is_valid({"instances": [], "params": {}})
    assert not infer.is_valid({"instances": "a", "params": {"max_tokenz": 5}})
