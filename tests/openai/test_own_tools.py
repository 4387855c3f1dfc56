"""Tools in chats of the pool's own application."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpupool.api.openai.own.conversation import plain_messages
from tests.engines.talker import Talker
from tests.openai.own import Api, serving
from tests.openai.test_own_chat import PATH, prompt_of, says

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "time"}},
]
NAMED = {"type": "function", "function": {"name": "weather"}}
TWO = '[{"name": "weather", "parameters": {"city": "Ulm"}}, {"name": "time", "parameters": {}}]'
TAGGED = (
    'Let me see.<tool_call>{"name": "weather", "arguments": {"city": "Ulm"}}</tool_call>\n'
    '<tool_call>{"name": "time", "arguments": {}}</tool_call>\n'
)


def ask(api: Api, text: str, **body: Any) -> dict[str, Any]:
    """The choice, whose message is the same as a stream and at once."""
    body = {"messages": says(text), "tools": TOOLS, **body}
    (whole,) = api.ask(PATH, **body)["choices"]
    streamed: dict[str, Any] = {"content": None, "calls": [], "reason": None}
    for event in api.stream(PATH, **body):
        take(streamed, event["choices"][0])
    message = whole["message"]
    assert streamed["content"] == message["content"]
    assert streamed["calls"] == calls(whole)
    assert streamed["reason"] == whole["finish_reason"]
    found: dict[str, Any] = whole
    return found


def take(streamed: dict[str, Any], choice: dict[str, Any]) -> None:
    delta = choice["delta"]
    if "content" in delta:
        streamed["content"] = (streamed["content"] or "") + delta["content"]
    for call in delta.get("tool_calls", ()):
        if "id" in call:
            assert call["type"] == "function"
            assert call["index"] == len(streamed["calls"])
            streamed["calls"].append([call["function"]["name"], ""])
        streamed["calls"][call["index"]][1] += call["function"]["arguments"]
    streamed["reason"] = choice["finish_reason"] or streamed["reason"]


def calls(choice: dict[str, Any]) -> list[list[str]]:
    return [
        [call["function"]["name"], call["function"]["arguments"]]
        for call in choice["message"].get("tool_calls", ())
    ]


def test_named_function_gets_the_text_as_its_arguments(api: Api) -> None:
    found = ask(api, '{"city": "Ulm"}', tool_choice=NAMED)
    assert calls(found) == [["weather", '{"city": "Ulm"}']]
    assert (found["message"]["content"], found["finish_reason"]) == (None, "stop")


def test_named_function_restricts_the_text_to_its_schema(api: Api) -> None:
    api.engine.asked.clear()
    ask(api, "{}", tool_choice=NAMED)
    grammar = api.engine.asked[0].grammar
    assert grammar is not None
    assert json.loads(grammar.text) == CITY


def test_required_calls_are_a_list(api: Api) -> None:
    found = ask(api, TWO, tool_choice="required")
    assert calls(found) == [["weather", '{"city": "Ulm"}'], ["time", "{}"]]
    assert (found["message"]["content"], found["finish_reason"]) == (None, "tool_calls")


def test_required_restricts_the_text_to_calls_of_the_tools(api: Api) -> None:
    api.engine.asked.clear()
    ask(api, TWO, tool_choice="required", parallel_tool_calls=False)
    grammar = api.engine.asked[0].grammar
    assert grammar is not None
    schema = json.loads(grammar.text)
    assert (schema["minItems"], schema["maxItems"]) == (1, 1)
    first, second = schema["items"]["anyOf"]
    assert first["properties"] == {
        "name": {"type": "string", "enum": ["weather"]},
        "parameters": CITY,
    }
    assert second["properties"]["parameters"] == {"type": "object", "properties": {}}


def test_definitions_of_a_function_are_found_from_the_root(api: Api) -> None:
    api.engine.asked.clear()
    parameters = {"$defs": {"City": {"type": "string"}}, "$ref": "#/$defs/City"}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    api.ask(PATH, messages=says(TWO), tools=[tool], tool_choice="required")
    grammar = api.engine.asked[0].grammar
    assert grammar is not None
    schema = json.loads(grammar.text)
    assert schema["$defs"] == {"City": {"type": "string"}}
    assert "$defs" not in schema["items"]["anyOf"][0]["properties"]["parameters"]


def test_call_that_is_cut_off_is_none(api: Api) -> None:
    found = ask(api, TWO, tool_choice="required", max_tokens=len(TWO.encode()) - 5)
    assert calls(found) == [["weather", '{"city": "Ulm"}']]
    assert found["finish_reason"] == "length"


def test_calls_of_the_models_own_accord_are_read_from_their_tags(api: Api) -> None:
    found = ask(api, TAGGED)
    assert found["message"]["content"] == "Let me see."
    assert calls(found) == [["weather", '{"city": "Ulm"}'], ["time", "{}"]]
    assert found["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("text", ["a < b", "<tool", "<tool_call>no JSON</tool_call> after"])
def test_text_that_is_no_call_stays_text(api: Api, text: str) -> None:
    found = ask(api, text)
    assert (found["message"]["content"], found["finish_reason"]) == (text, "stop")


def test_text_alone_comes_at_once_though_tools_are_there(api: Api) -> None:
    events = api.stream(PATH, messages=says("abc"), tools=TOOLS)
    assert len(events) == 4


def test_model_is_told_of_the_tools(api: Api) -> None:
    assert prompt_of(api, messages=says("x"), tools=TOOLS).startswith("weather/time/")


def test_without_tools_to_call_none_are_told(api: Api) -> None:
    answer = api.ask(PATH, messages=says("x"), tools=TOOLS, tool_choice="none")
    assert answer["usage"]["prompt_tokens"] == len(prompt_of(api, messages=says("x")))


class Untaught(Talker):
    calls_tools = False


def test_model_without_a_known_form_of_calls_is_400() -> None:
    with serving(engine_class=Untaught) as api:
        error = api.refused(PATH, messages=says("x"), tools=TOOLS)
        assert (error["param"], error["code"]) == ("tool_choice", "unsupported")
        ask(api, "{}", tool_choice=NAMED)


def test_earlier_calls_reach_the_template_as_objects() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    (plain,) = plain_messages([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert plain["content"] == ""
    assert plain["tool_calls"][0]["function"]["arguments"] == {"a": 1}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tool_choice": "required"}, "tools"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        (
            {"tools": [{"function": {"name": "f", "parameters": True}}], "tool_choice": "required"},
            "tools",
        ),
        (
            {
                "tools": TOOLS,
                "tool_choice": "required",
                "response_format": {"type": "json_object"},
            },
            "response_format",
        ),
    ],
    ids=["none there", "no such word", "no such tool", "no function", "no schema", "two formats"],
)
def test_tools_that_cannot_be_are_400(api: Api, body: dict[str, Any], param: str) -> None:
    assert api.refused(PATH, messages=says("x"), **body)["param"] == param
