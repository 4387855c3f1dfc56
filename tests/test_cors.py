"""Which pages may ask from a browser."""

from __future__ import annotations

import pytest

from gpupool.api.cors import allowing, preflight
from tests.openai.client import CHAT, Script, ask, gate_around
from tests.test_app import make_client

PAGE = "https://page.example"
ALLOW = "Access-Control-Allow-Origin"


def test_nobody_may_by_default() -> None:
    assert allowing(PAGE, ()) == {}
    assert preflight(PAGE, "authorization", ()) is None


def test_a_named_page_may() -> None:
    assert allowing(PAGE, (PAGE,))[ALLOW] == PAGE
    answer = preflight(PAGE, "authorization, x-mine", (PAGE,))
    assert answer is not None
    assert answer["Access-Control-Allow-Headers"] == "authorization, x-mine"


@pytest.mark.parametrize("origin", ["https://other.example", "null", PAGE + ".evil", ""])
def test_another_page_may_not(origin: str) -> None:
    assert ALLOW not in allowing(origin, (PAGE,))
    assert preflight(origin, "", (PAGE,)) is None


def test_all_pages_may_if_the_operator_says_so() -> None:
    assert allowing(PAGE, ("*",))[ALLOW] == "*"


def test_cookies_are_never_allowed() -> None:
    for origins in ((PAGE,), ("*",)):
        assert "Access-Control-Allow-Credentials" not in (preflight(PAGE, "", origins) or {})


@pytest.mark.parametrize("path", ["/infer", CHAT])
def test_a_browser_asks_first_and_without_a_key(path: str) -> None:
    client = make_client(api_key=("k",), cors_origin=(PAGE,))
    headers = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    answer = client.options(path, headers=headers)
    assert (answer.status_code, answer.headers[ALLOW]) == (204, PAGE)
    refused = client.options(path, headers=headers | {"Origin": "https://x"})
    assert (refused.status_code, refused.json["error"]["type"]) == (403, "permission_error")


def test_answers_say_who_may_read_them() -> None:
    client = make_client(cors_origin=(PAGE,))
    assert client.get("/livez", headers={"Origin": PAGE}).headers[ALLOW] == PAGE
    assert ALLOW not in client.get("/livez", headers={"Origin": "https://x"}).headers
    gate = gate_around(Script(content={}), cors_origins=(PAGE,))
    body = {"messages": [{"role": "user", "content": "a"}]}
    assert ask(gate, CHAT, body, headers={"origin": PAGE}).headers[ALLOW.lower()] == PAGE
    assert ALLOW.lower() not in ask(gate, CHAT, body, headers={"origin": "https://x"}).headers
