"""/v1/chat/completions of the pool's own application."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.openai.own import Api, serving

PATH = "/v1/chat/completions"


def says(text: str) -> list[dict[str, Any]]:
    """A conversation that the engine answers with this text."""
    return [{"role": "user", "content": f"|{text}"}]


def choice(api: Api, text: str, **body: Any) -> dict[str, Any]:
    (only,) = api.ask(PATH, messages=says(text), **body)["choices"]
    found: dict[str, Any] = only
    return found


def prompt_of(api: Api, **body: Any) -> str:
    """The conversation as the engine was given it."""
    answer = api.ask("/tokenize", **body)
    return bytes(answer["tokens"]).decode()


def test_answer_is_of_the_openai_packages_type(api: Api) -> None:
    answer = ChatCompletion.model_validate(api.ask(PATH, messages=says("hello")))
    assert (answer.object, answer.choices[0].message.content) == ("chat.completion", "hello")
    assert (answer.choices[0].message.role, answer.choices[0].finish_reason) == (
        "assistant",
        "stop",
    )


def test_usage_counts_the_rendered_conversation_once(api: Api) -> None:
    answer = api.ask(PATH, messages=says("hello"), n=2)
    prompt = prompt_of(api, messages=says("hello"))
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    assert answer["usage"]["completion_tokens"] == 10


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_length_hold(api: Api, name: str) -> None:
    found = choice(api, "hello", **{name: 3})
    assert (found["message"]["content"], found["finish_reason"]) == ("hel", "length")


def test_without_a_length_there_is_all_the_context() -> None:
    with serving("--context", "99") as api:
        api.ask(PATH, messages=says("x"))
        prompt = prompt_of(api, messages=says("x"))
        assert api.engine.asked[0].max_tokens == 99 - len(prompt)


def test_parts_of_a_message_are_joined(api: Api) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert prompt_of(api, messages=[{"role": "user", "content": parts}]).endswith("/one\ntwo")


def test_picture_is_refused(api: Api) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    error = api.refused(PATH, messages=[{"role": "user", "content": parts}])
    assert error["code"] == "unsupported"


def test_variables_of_the_template_reach_it(api: Api) -> None:
    found = prompt_of(api, messages=says("x"), chat_template_kwargs={"thinking": False})
    assert found.startswith("thinking=False/add_generation_prompt=True/")


def test_message_can_be_gone_on_with(api: Api) -> None:
    found = prompt_of(api, messages=says("x"), continue_final_message=True)
    assert found.startswith("add_generation_prompt=False/continue_final_message=True/")


def test_what_the_template_refuses_is_400_with_its_words(api: Api) -> None:
    error = api.refused(PATH, messages=[{"role": "tool", "content": "x"}])
    assert error["message"] == "a conversation cannot begin so"


def test_logprobs_tell_the_bytes(api: Api) -> None:
    found = choice(api, "é", logprobs=True, top_logprobs=1)
    first, second = found["logprobs"]["content"]
    assert (first["bytes"], second["bytes"]) == ([0xC3], [0xA9])
    assert first["logprob"] == -3.046875
    assert [other["bytes"] for other in first["top_logprobs"]] == [[0xC2]]


def test_stream_is_the_same_text_in_pieces(api: Api) -> None:
    events = api.stream(PATH, messages=says("hello"), n=2)
    chunks = [ChatCompletionChunk.model_validate(event) for event in events]
    for index in range(2):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert "".join(one.delta.content or "" for one in own) == "hello"
        assert [one.delta.role for one in own] == ["assistant"] + [None] * 5
        assert [one.finish_reason for one in own] == [None] * 5 + ["stop"]


def test_streamed_logprobs_come_with_their_tokens(api: Api) -> None:
    events = api.stream(PATH, messages=says("bc"), logprobs=True)
    found = [event["choices"][0]["logprobs"] for event in events]
    assert [part and part["content"][0]["token"] for part in found] == ["b", "c", None]


def test_stream_tells_usage_if_it_is_asked_to(api: Api) -> None:
    *_, last = api.stream(PATH, messages=says("abc"), stream_options={"include_usage": True})
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 3)


@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", ""),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "integer"}},
                }
            },
            "json_schema",
            '{"type": "integer"}',
        ),
        ({"structured_outputs": {"json": '{"type":"null"}'}}, "json_schema", '{"type":"null"}'),
        ({"structured_outputs": {"regex": "[ab]+"}}, "regex", "[ab]+"),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, "ebnf", 'root ::= "a"'),
        ({"structured_outputs": {"choice": ["é", 'a"b']}}, "ebnf", 'root ::= "é" | "a\\"b"'),
    ],
    ids=["object", "schema", "vllm json", "regex", "grammar", "choice"],
)
def test_format_reaches_the_engine_as_a_grammar(
    api: Api, given: dict[str, Any], kind: str, text: str
) -> None:
    api.engine.asked.clear()
    choice(api, "x", **given)
    grammar = api.engine.asked[0].grammar
    assert grammar is not None
    assert (grammar.kind, grammar.text) == (kind, text)


def test_plain_text_needs_no_grammar(api: Api) -> None:
    api.engine.asked.clear()
    choice(api, "x", response_format={"type": "text"})
    assert api.engine.asked[0].grammar is None
