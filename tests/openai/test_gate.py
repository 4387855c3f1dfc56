"""What holds for every engine: the gate around an application that a script plays."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import pytest

from tests.openai.chats import HELLO
from tests.openai.client import ABLE, CHAT, WHOLE, Script, ask, gate_around


def test_a_whole_answer_is_passed_on_as_it_is() -> None:
    answer = ask(gate_around(Script(content=WHOLE)), CHAT, HELLO)
    assert (answer.status, answer.json) == (200, WHOLE)


def test_the_application_is_asked_what_the_client_asked() -> None:
    script = Script(content=WHOLE)
    ask(gate_around(script), CHAT, HELLO | {"seed": 3})
    assert script.asked == [HELLO | {"seed": 3}]


def test_the_application_gets_no_header_to_decide_by() -> None:
    script = Script(content=WHOLE)
    ask(gate_around(script, keys=["k"]), CHAT, HELLO, headers={"authorization": "Bearer k"})
    names = {name for name, _ in script.scopes[0]["headers"]}
    assert names == {b"content-type", b"content-length", b"x-request-id"}


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic right", "right", "Bearer "])
@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/v1/nowhere", "/tokenize"])
def test_every_route_needs_the_key(header: str | None, path: str) -> None:
    script = Script(content=WHOLE)
    headers = {} if header is None else {"authorization": header}
    answer = ask(gate_around(script, keys=["right"]), path, HELLO, headers=headers)
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert script.asked == []


def test_any_of_the_keys_is_good() -> None:
    gate = gate_around(Script(content=WHOLE), keys=["one", "two"])
    assert ask(gate, CHAT, HELLO, headers={"authorization": "Bearer two"}).status == 200


def test_an_unknown_route_is_a_404_in_json() -> None:
    answer = ask(gate_around(Script()), "/v1/nowhere", HELLO)
    assert (answer.status, answer.error["code"]) == (404, "no_route")


def test_a_route_that_the_engine_has_not_is_a_400_that_says_so() -> None:
    answer = ask(gate_around(Script()), "/v1/rerank", {"query": "a", "documents": ["b"]})
    assert (answer.status, answer.error["code"]) == (400, "unsupported")


def test_a_route_that_the_engine_could_have_is_a_400_that_says_how() -> None:
    able = replace(ABLE, absent={"/v1/rerank": "start it with --reranking"})
    answer = ask(gate_around(Script(), able=able), "/v1/rerank", {"query": "a", "documents": ["b"]})
    assert answer.error["message"].endswith("start it with --reranking")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat%2Fcompletions",
        "/v1/%63hat/completions",
        "/%76%31/chat/completions",
        "/v1/chat/completions/",
        "/v1//chat/completions",
        "/v1/./chat/completions",
        "/v1/x/../chat/completions",
        "/v1/chat/completions;x",
        "/v1/chat/completions%00",
        "/V1/chat/completions",
    ],
)
def test_no_other_spelling_of_a_route_gets_past_the_queue(path: str) -> None:
    """Admission and the limits of keys know a route by one spelling."""
    script = Script(content=WHOLE)
    answer = ask(gate_around(script), path, HELLO)
    assert (answer.status, answer.error["code"]) == (404, "no_route")
    assert script.asked == []


@pytest.mark.parametrize(
    "path",
    [
        "/sleep",
        "/wake_up",
        "/reset_prefix_cache",
        "/collective_rpc",
        "/server_info",
        "/start_profile",
        "/load",
        "/invocations",
        "/scale_elastic_ep",
        "/inference/v1/generate",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/v1/chat/completions/render",
        "/v1/responses/resp_1/cancel",
    ],
)
def test_what_else_an_engines_application_has_is_no_route(path: str) -> None:
    """Whatever VLLM_SERVER_DEV_MODE and its like open in there."""
    script = Script(content=WHOLE)
    assert ask(gate_around(script), path, HELLO).status == 404
    assert script.asked == []


def test_the_wrong_method_is_a_405() -> None:
    answer = ask(gate_around(Script()), CHAT, method="PUT")
    assert answer.status == 405
    assert "takes POST" in answer.error["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_what_a_browsers_form_can_send_is_a_415(kind: str) -> None:
    script = Script(content=WHOLE)
    answer = ask(gate_around(script), CHAT, HELLO, headers={"content-type": kind})
    assert answer.status == 415
    assert script.asked == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{",
        b'{"messages": NaN}',
        b"\xff",
        b'{"messages": ' + b"[" * 100_0 + b"]" * 100_0 + b"}",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"seed": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_clean_json_object_is_a_400(raw: bytes) -> None:
    answer = ask(gate_around(Script(content=WHOLE)), CHAT, raw=raw)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("raw", [b"1e400", b"-1e0400", b"1" + b"0" * 20, b"-1" + b"0" * 20])
@pytest.mark.parametrize(
    ("field", "param"), [(b'"user": %b', "user"), (b'"vllm_xargs": {"a": [%b]}', "vllm_xargs")]
)
def test_no_number_beyond_64_bits_or_beyond_any_float_reaches_an_engine(
    raw: bytes, field: bytes, param: str
) -> None:
    """vLLM cannot pass such a number to its engine, and never forgets the request."""
    body = b'{"messages": [{"role": "user", "content": "a"}], ' + field % raw + b"}"
    script = Script(content=WHOLE)
    answer = ask(gate_around(script), CHAT, raw=body)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert script.asked == []


@pytest.mark.parametrize("number", [(1 << 64) - 1, -(1 << 63), 1.5e308, 1e-400])
def test_a_number_that_fits_is_let_through(number: float) -> None:
    text = "12345678901234567890123 1e999"
    body = HELLO | {"vllm_xargs": {"a": number}, "user": text}
    assert ask(gate_around(Script(content=WHOLE)), CHAT, body).status == 200


def test_a_compressed_body_is_not_unpacked() -> None:
    raw = gzip.compress(json.dumps(HELLO).encode())
    headers = {"content-encoding": "gzip"}
    assert ask(gate_around(Script(content=WHOLE)), CHAT, raw=raw, headers=headers).status == 400


def test_of_a_name_that_stands_twice_the_engine_reads_what_was_checked() -> None:
    script = Script(content=WHOLE)
    raw = json.dumps(HELLO).encode()[:-1] + b', "n": 1000000, "n": 2}'
    assert ask(gate_around(script), CHAT, raw=raw).status == 200
    assert script.asked == [HELLO | {"n": 2}]


def test_a_surrogate_pair_is_a_character() -> None:
    raw = b'{"messages": [{"role": "user", "content": "\\ud83d\\ude00"}]}'
    assert ask(gate_around(Script(content=WHOLE)), CHAT, raw=raw).status == 200


def test_a_body_over_the_limit_is_a_413() -> None:
    gate = gate_around(Script(content=WHOLE), max_body_bytes=100)
    assert ask(gate, CHAT, HELLO | {"user": "x" * 100}).status == 413


# The model's name.


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_the_model_has_its_names(name: str) -> None:
    assert ask(gate_around(Script(content=WHOLE)), CHAT, HELLO | {"model": name}).status == 200


@pytest.mark.parametrize("name", ["Tiny", "../tiny", "", "gpt-5"])
def test_any_other_model_is_a_404(name: str) -> None:
    answer = ask(gate_around(Script(content=WHOLE)), CHAT, HELLO | {"model": name})
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")


def test_the_models_are_listed() -> None:
    answer = ask(gate_around(Script()), "/v1/models", method="GET")
    assert [model["id"] for model in answer.json["data"]] == ["tiny", "small"]
    assert answer.json["data"][0]["max_model_len"] == ABLE.model.context_tokens


def test_one_model_is_described() -> None:
    gate = gate_around(Script())
    assert ask(gate, "/v1/models/small", method="GET").json["id"] == "small"
    assert ask(gate, "/v1/models/big", method="GET").status == 404


# Request ids.


def test_a_request_id_is_made() -> None:
    answers = [ask(gate_around(Script(content=WHOLE)), CHAT, HELLO) for _ in range(2)]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == 2
    assert all(len(one) == 32 for one in ids)


def test_the_clients_request_id_comes_back_also_with_an_error() -> None:
    headers = {"x-request-id": "mine-1"}
    for path in (CHAT, "/v1/nowhere"):
        answer = ask(gate_around(Script(content=WHOLE)), path, HELLO, headers=headers)
        assert answer.headers["x-request-id"] == "mine-1"


@pytest.mark.parametrize("given", ["a b", "x" * 129, "a\tb", "ä"])
def test_a_request_id_that_is_not_fit_for_a_log_is_replaced(given: str) -> None:
    headers = {"x-request-id": given}
    answer = ask(gate_around(Script(content=WHOLE)), CHAT, HELLO, headers=headers)
    assert len(answer.headers["x-request-id"]) == 32


def test_two_clients_with_one_id_are_two_requests_for_the_engine() -> None:
    script = Script(content=WHOLE)
    for _ in range(2):
        ask(gate_around(script), CHAT, HELLO, headers={"x-request-id": "same"})
    ids = {dict(scope["headers"])[b"x-request-id"] for scope in script.scopes}
    assert len(ids) == 2
