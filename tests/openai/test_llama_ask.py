"""What llama.cpp's handlers are asked for a client's body."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpupool.engines.base import ModelInfo
from gpupool.engines.llama_cpp_ask import Ask, ask_chat, ask_completion, refuse_lacking
from gpupool.engines.llama_cpp_calls import CallReader, schema_of_calls
from gpupool.engines.llama_cpp_fields import (
    CHAT,
    COMPLETIONS,
    DETOKENIZE,
    EMBEDDINGS,
    LACKING_ON,
    RERANKS,
    RESPONSES,
    TOKENIZE,
    absent_routes,
    fields_of,
)
from gpupool.engines.llama_cpp_grammar import grammar_of_choices
from gpupool.engines.llama_cpp_openai import leaves
from gpupool.engines.llama_cpp_segment import fold_seed
from gpupool.engines.llama_cpp_uses import Uses
from gpupool.errors import BadRequest

MODEL = ModelInfo(name="M", context_tokens=512, vocab_size=1000, slots=4)
MESSAGES = [{"role": "user", "content": "Hi"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA}}


def chat(*, has_tools: bool = True, **fields: Any) -> Ask:
    return ask_chat({"messages": MESSAGES, **fields}, MODEL, has_tools=has_tools)


def completion(prompt: Any = "Hi", **fields: Any) -> Ask:
    return ask_completion({"prompt": prompt, **fields}, MODEL, ["<end>"])


def asked(**fields: Any) -> dict[str, Any]:
    """The only request to llama.cpp of a chat."""
    (part,) = chat(**fields).parts
    return part.body


def refusal(**fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        chat(**fields)
    return caught.value


def test_defaults_are_openais() -> None:
    """llama.cpp's own are top_k 40, top_p 0.95 and min_p 0.05, each a sampler of its chain."""
    assert asked()["samplers"] == ["temperature"]
    assert asked()["temperature"] == 1.0


def test_llama_cpp_always_streams_and_tells_its_steps() -> None:
    body = asked(stream=False)
    assert (body["stream"], body["return_progress"]) == (True, True)
    assert body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_limit_a_chat(name: str) -> None:
    assert asked(**{name: 7})["n_predict"] == 7


def test_a_chat_without_a_limit_goes_on_to_its_end() -> None:
    assert "n_predict" not in asked()


def test_a_completion_without_a_limit_has_16_tokens() -> None:
    assert completion().parts[0].body["n_predict"] == 16


def test_idle_fields_do_not_reach_llama_cpp() -> None:
    idle = {"user": "u", "metadata": {"a": "b"}, "service_tier": "auto", "store": False}
    assert asked(**idle) == asked()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"repetition_penalty": 1.5}, {"repeat_penalty": 1.5, "repeat_last_n": 512}),
        ({"presence_penalty": 0.5}, {"presence_penalty": 0.5, "repeat_last_n": 512}),
        ({"top_k": 5, "top_p": 0.5, "min_p": 0.1}, {"top_k": 5, "top_p": 0.5, "min_p": 0.1}),
        ({"temperature": 0}, {"samplers": ["top_k"], "top_k": 1}),
        ({"temperature": 1e-9}, {"samplers": ["top_k"], "top_k": 1}),
        ({"top_k": -1}, {"samplers": ["temperature"]}),
        ({"ignore_eos": True}, {"ignore_eos": True}),
        ({"logit_bias": {"5": 1}}, {"logit_bias": {"5": 1}}),
        ({"stop": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"logprobs": True}, {"n_probs": 1}),
        ({"logprobs": True, "top_logprobs": 3}, {"n_probs": 3}),
        ({"reasoning_effort": "low"}, {"chat_template_kwargs": {"reasoning_effort": "low"}}),
    ],
    ids=lambda value: "-".join(value),
)
def test_fields_become_llama_cpps(given: dict[str, Any], expected: dict[str, Any]) -> None:
    body = asked(**given)
    assert {name: body[name] for name in expected} == expected


def test_n_sequences_have_seeds_of_their_own() -> None:
    seeds = [part.body["seed"] for part in chat(n=3, seed=5).parts]
    assert seeds == [fold_seed(5, 0), fold_seed(6, 0), fold_seed(7, 0)]


def test_a_seed_is_the_same_whether_signed_or_not() -> None:
    assert asked(seed=(1 << 64) - 1) == asked(seed=-1)


def test_choices_are_in_the_order_of_the_prompts() -> None:
    parts = completion(["a", "b"], n=2).parts
    assert [part.body["prompt"] for part in parts] == ["a", "a", "b", "b"]
    assert [part.prompt_index for part in parts] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]]), (["a", [1]], ["a", [1]])],
)
def test_every_kind_of_prompt_is_one_or_several(prompt: Any, prompts: list[Any]) -> None:
    assert [part.body["prompt"] for part in completion(prompt).parts] == prompts


def test_a_later_turn_begins_like_the_one_before() -> None:
    first = chat().parts[0].key
    answer = {"role": "assistant", "content": "Hello"}
    second = chat(messages=[*MESSAGES, answer, *MESSAGES]).parts[0].key
    assert isinstance(first, bytes)
    assert second[: len(first)] == first


def test_special_tokens_are_kept_on_demand() -> None:
    assert completion(skip_special_tokens=False).parts[0].body["preserved_tokens"] == ["<end>"]
    assert "preserved_tokens" not in completion().parts[0].body


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "b"}}])
def test_a_call_that_is_required_is_a_text_of_a_schema(choice: Any) -> None:
    (part,) = (ask := chat(tools=[tool("a"), tool("b")], tool_choice=choice)).parts
    calls = part.body["json_schema"]["$defs"].values()
    names = [call["properties"]["name"]["const"] for call in calls]
    assert names == (["a", "b"] if choice == "required" else ["b"])
    # The model is told of both, or what it has computed of them could not be used again.
    assert (part.body["tools"], part.body["tool_choice"]) == ([tool("a"), tool("b")], "none")
    assert ask.must_call


@pytest.mark.parametrize("choice", [None, "none", "auto"])
def test_calls_that_may_be_made_are_llama_cpps_affair(choice: str | None) -> None:
    (part,) = (ask := chat(tools=[tool("a")], tool_choice=choice)).parts
    assert part.body["tool_choice"] == (choice or "auto")
    assert "json_schema" not in part.body
    assert not ask.must_call


def test_tools_that_the_template_does_not_tell_of_are_refused() -> None:
    with pytest.raises(BadRequest) as caught:
        chat(tools=[tool("a")], has_tools=False)
    assert (caught.value.param, caught.value.code) == ("tools", "unsupported")
    chat(tools=[tool("a")], tool_choice="none", has_tools=False)


def test_references_of_a_tools_schema_lead_there() -> None:
    schema = {"$defs": {"c": {"type": "string"}}, "properties": {"x": {"$ref": "#/$defs/c"}}}
    found = schema_of_calls([{"function": {"name": "a", "parameters": schema}}])
    arguments = found["$defs"]["call0"]["properties"]["arguments"]
    assert arguments["properties"]["x"] == {"$ref": "#/$defs/call0/properties/arguments/$defs/c"}


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_call_is_read_as_it_comes(size: int) -> None:
    text = ' {"name": "say \\"x\\"", "arguments": {"a": {"b": "}"} } }'
    reader = CallReader()
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    deltas = [delta for piece in pieces if (delta := reader.read(piece)) is not None]
    assert deltas[0]["function"]["name"] == 'say "x"'
    assert all("id" not in delta for delta in deltas[1:])
    arguments = "".join(delta["function"]["arguments"] for delta in deltas)
    assert json.loads(arguments) == {"a": {"b": "}"}}


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": "required"},
        {"tools": [tool("a")], "tool_choice": "any"},
        {"tools": [tool("a")], "tool_choice": {"type": "function", "function": {"name": "b"}}},
        {"tools": [tool("a")], "tool_choice": {"type": "allowed_tools"}},
    ],
    ids=["no tools", "unknown word", "unknown name", "unknown kind"],
)
def test_a_choice_of_no_tool_is_refused(fields: dict[str, Any]) -> None:
    assert refusal(**fields).param == "tool_choice"


def test_logprobs_of_tool_calls_are_refused() -> None:
    assert refusal(tools=[tool("a")], logprobs=True).code == "unsupported"
    assert asked(tools=[tool("a")], tool_choice="none", logprobs=True)["n_probs"] == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"json_schema": {"type": "object"}}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            {"json_schema": SCHEMA},
        ),
        ({"structured_outputs": {"json": SCHEMA}}, {"json_schema": SCHEMA}),
        (
            {"structured_outputs": {"json": '{"type": "object"}'}},
            {"json_schema": {"type": "object"}},
        ),
        ({"structured_outputs": {"grammar": "root ::= [a]"}}, {"grammar": "root ::= [a]"}),
        ({"structured_outputs": {"choice": ["a"], "regex": None}}, {"grammar": 'root ::= "a"'}),
        ({"grammar": "root ::= [a]"}, {"grammar": "root ::= [a]"}),
        ({"json_schema": SCHEMA}, {"json_schema": SCHEMA}),
    ],
    ids=[
        "text",
        "object",
        "schema",
        "json",
        "json text",
        "grammar",
        "choice",
        "gbnf",
        "own schema",
    ],
)
def test_what_restricts_a_text_has_two_forms(
    given: dict[str, Any], expected: dict[str, Any]
) -> None:
    for body in (asked(**given), completion(**given).parts[0].body):
        found = {name: body[name] for name in ("json_schema", "grammar") if name in body}
        assert found == expected


def test_two_restrictions_are_refused() -> None:
    with pytest.raises(BadRequest, match="more than once"):
        chat(grammar="root ::= [a]", response_format={"type": "json_object"})


@pytest.mark.parametrize("name", ["regex", "structural_tag"])
def test_what_llama_cpp_cannot_restrict_is_refused(name: str) -> None:
    error = refusal(structured_outputs={name: "x"})
    assert (error.code, error.param) == ("unsupported", f"structured_outputs.{name}")


def test_choices_are_quoted() -> None:
    assert grammar_of_choices(['say "a"\n', "b\\"]) == 'root ::= "say \\"a\\"\\x0a" | "b\\\\"'


def test_pictures_are_refused() -> None:
    parts = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    error = refusal(messages=[{"role": "user", "content": parts}])
    assert (error.code, error.param) == ("unsupported", "messages")
    asked(messages=[{"role": "user", "content": parts[:1]}])


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS, *RERANKS])
def test_what_is_lacking_is_refused_by_name_and_its_neutral_values_are_not(path: str) -> None:
    known = fields_of(Uses(generates=True, embeds=True, ranks=True))[path]
    for name, neutral in LACKING_ON[path].items():
        assert name in known
        for value in neutral:
            refuse_lacking(path, {name: value})
        with pytest.raises(BadRequest) as caught:
            refuse_lacking(path, {name: "anything else"})
        assert (caught.value.param, caught.value.code) == (name, "unsupported")


def test_an_unknown_stream_option_is_refused() -> None:
    options = {"continuous_usage_stats": True}
    error = refusal(stream=True, stream_options=options)
    assert error.param == "stream_options.continuous_usage_stats"


TEXTS = {CHAT, COMPLETIONS, RESPONSES}
ROUTES_OF = {
    "texts": (Uses(generates=True, embeds=False, ranks=False), TEXTS),
    "texts and vectors": (Uses(generates=True, embeds=True, ranks=False), TEXTS | {EMBEDDINGS}),
    "vectors": (Uses(generates=False, embeds=True, ranks=False), {EMBEDDINGS}),
    "ranks": (Uses(generates=False, embeds=False, ranks=True), {*RERANKS}),
}


@pytest.mark.parametrize(("uses", "expected"), ROUTES_OF.values(), ids=ROUTES_OF)
def test_the_routes_are_those_that_the_pool_was_started_for(uses: Uses, expected: set[str]) -> None:
    assert set(fields_of(uses)) == expected | {TOKENIZE, DETOKENIZE}


@pytest.mark.parametrize(("uses", "expected"), ROUTES_OF.values(), ids=ROUTES_OF)
def test_a_route_that_is_not_there_says_what_it_needs(uses: Uses, expected: set[str]) -> None:
    absent = absent_routes(uses)
    assert set(absent) == (TEXTS | {EMBEDDINGS, *RERANKS}) - expected
    assert all("--reranking" in absent[path] for path in RERANKS if path in absent)


def test_only_completions_with_an_echo_are_left_to_the_pool() -> None:
    assert leaves(COMPLETIONS, {"prompt": "a", "echo": True})
    assert not leaves(COMPLETIONS, {"prompt": "a", "echo": False})
    assert not leaves(CHAT, {"messages": MESSAGES, "echo": True})
