"""/v1/completions of the pool's own application."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import Completion

from tests.engines.talker import Talker
from tests.openai.own import Api, serving

PATH = "/v1/completions"
SHORT = {"max_tokens": 4}


def texts(answer: dict[str, Any]) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


def test_answer_is_of_the_openai_packages_type(api: Api) -> None:
    answer = Completion.model_validate(api.ask(PATH, prompt="ab", **SHORT))
    assert (answer.model, answer.object, answer.choices[0].text) == ("m", "text_completion", "abab")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("ab", ["abab"]), ([97, 98], ["abab"]), (["a", "b"], ["aaaa", "bbbb"]), ([[97], [98, 99]],
     ["aaaa", "bcbc"])],
    ids=["text", "tokens", "texts", "lists of tokens"],
)  # fmt: skip
def test_prompt_may_be_text_or_tokens_or_many(api: Api, prompt: Any, expected: list[str]) -> None:
    assert texts(api.ask(PATH, prompt=prompt, **SHORT)) == expected


def test_choices_are_numbered_prompt_by_prompt(api: Api) -> None:
    answer = api.ask(PATH, prompt=["a", "b"], n=2, **SHORT)
    assert texts(answer) == ["aaaa", "aaaa", "bbbb", "bbbb"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]


def test_usage_counts_a_prompt_once(api: Api) -> None:
    answer = api.ask(PATH, prompt=["abc", "de"], n=3, **SHORT)
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 24, "total_tokens": 29}


def test_finish_reason_is_the_engines(api: Api) -> None:
    answer = api.ask(PATH, prompt=["a|xyz", "b|uvwxyz"], **SHORT)
    assert texts(answer) == ["xyz", "uvwx"]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop", "length"]


def test_default_length_is_openais(api: Api) -> None:
    assert api.ask(PATH, prompt="a")["usage"]["completion_tokens"] == 16


def test_default_length_is_cut_to_the_context() -> None:
    with serving("--context", "10") as api:
        assert api.ask(PATH, prompt="12345678")["usage"]["completion_tokens"] == 2


def test_length_beyond_the_context_is_400() -> None:
    with serving("--context", "10") as api:
        error = api.refused(PATH, prompt="12345678", max_tokens=3)
        assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")


def test_seeds_of_choices_differ(api: Api) -> None:
    api.engine.asked.clear()
    api.ask(PATH, prompt="a", n=3, seed=7, **SHORT)
    assert sorted(params.seed or 0 for params in api.engine.asked) == [7, 8, 9]


def test_parameters_reach_the_engine(api: Api) -> None:
    api.engine.asked.clear()
    given: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "presence_penalty": 0.2,
        "frequency_penalty": 0.3, "repetition_penalty": 1.1, "seed": 5, "min_tokens": 2,
    }  # fmt: skip
    more = {"stop": "#", "logit_bias": {"65": 2}, "stop_token_ids": [3], "ignore_eos": True}
    api.ask(PATH, prompt="a", **given, **more, skip_special_tokens=False, **SHORT)
    (params,) = api.engine.asked
    assert {name: getattr(params, name) for name in given} == given
    assert (params.stop, params.stop_token_ids, params.logit_bias) == (("#",), (3,), {65: 2.0})
    assert (params.ignore_eos, params.skip_special_tokens) == (True, False)


def test_tiny_temperature_is_greedy(api: Api) -> None:
    api.engine.asked.clear()
    api.ask(PATH, prompt="a", temperature=1e-6, **SHORT)
    assert api.engine.asked[0].temperature == 0


# Log-probabilities.


def test_logprobs_have_the_best_and_the_token_itself(api: Api) -> None:
    (choice,) = api.ask(PATH, prompt="bc", logprobs=2, max_tokens=2)["choices"]
    assert choice["logprobs"] == {
        "tokens": ["b", "c"],
        "token_logprobs": [-1.53125, -1.546875],
        "top_logprobs": [{"a": -0.53125, "b": -1.53125}, {"b": -0.546875, "c": -1.546875}],
        "text_offset": [0, 1],
    }


def test_token_that_is_not_among_the_best_is_told_too(api: Api) -> None:
    (choice,) = api.ask(PATH, prompt="b", logprobs=1, max_tokens=1)["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{"a": -0.53125, "b": -1.53125}]


def test_tokens_can_be_named_by_their_ids(api: Api) -> None:
    (choice,) = api.ask(
        PATH, prompt="b", logprobs=1, max_tokens=1, return_tokens_as_token_ids=True
    )["choices"]
    assert choice["logprobs"]["tokens"] == ["token_id:98"]
    assert set(choice["logprobs"]["top_logprobs"][0]) == {"token_id:97", "token_id:98"}


def test_echo_without_generation_gives_the_prompts_logprobs(api: Api) -> None:
    answer = api.ask(PATH, prompt=["bcd", "x"], echo=True, logprobs=1, max_tokens=0)
    first, second = answer["choices"]
    assert (first["text"], first["finish_reason"]) == ("bcd", "length")
    assert first["logprobs"] == {
        "tokens": ["b", "c", "d"],
        "token_logprobs": [None, -1.546875, -1.5625],
        "top_logprobs": [None, {"b": -0.546875, "c": -1.546875}, {"c": -0.5625, "d": -1.5625}],
        "text_offset": [0, 1, 2],
    }
    assert second["logprobs"]["token_logprobs"] == [None]
    assert answer["usage"]["completion_tokens"] == 0


def test_echo_comes_before_the_completion(api: Api) -> None:
    (choice,) = api.ask(PATH, prompt="bc", echo=True, logprobs=1, max_tokens=1)["choices"]
    assert choice["text"] == "bcb"
    assert choice["logprobs"]["token_logprobs"] == [None, -1.546875, -1.53125]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]


def test_echoed_tokens_come_as_text(api: Api) -> None:
    assert texts(api.ask(PATH, prompt=[98, 99], echo=True, max_tokens=1)) == ["bcb"]


def test_offset_within_a_character_is_the_characters(api: Api) -> None:
    (choice,) = api.ask(PATH, prompt="aéb", echo=True, logprobs=0, max_tokens=0)["choices"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 1, 2]


def test_whole_context_can_be_scored() -> None:
    with serving("--context", "5") as api:
        answer = api.ask(PATH, prompt="abcde", echo=True, logprobs=1, max_tokens=0)
        assert len(answer["choices"][0]["logprobs"]["tokens"]) == 5


# Streams.


def test_stream_is_the_same_text_in_pieces(api: Api) -> None:
    events = api.stream(PATH, prompt=["ab|hello", "c|world"], max_tokens=9)
    for index, text in enumerate(["hello", "world"]):
        own = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in own) == text
        assert len(own) == 6
        assert [choice["finish_reason"] for choice in own] == [None] * 5 + ["stop"]


def test_streamed_logprobs_go_on_where_the_last_ended(api: Api) -> None:
    events = api.stream(PATH, prompt="bc", echo=True, logprobs=0, max_tokens=2)
    parts = [event["choices"][0]["logprobs"] for event in events[:3]]
    assert [offset for part in parts for offset in part["text_offset"]] == [0, 1, 2, 3]
    assert [token for part in parts for token in part["tokens"]] == ["b", "c", "b", "c"]
    assert events[0]["choices"][0]["text"] == "bc"


def test_stream_tells_usage_if_it_is_asked_to(api: Api) -> None:
    events = api.stream(PATH, prompt="abc", stream_options={"include_usage": True}, **SHORT)
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert not [event for event in api.stream(PATH, prompt="a", **SHORT) if "usage" in event]


# Refusals.


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "a", "tools": []}, "tools"),
        ({"prompt": "a", "suffix": "end"}, "suffix"),
        ({"prompt": "a", "use_beam_search": True}, "use_beam_search"),
        ({"prompt": ""}, "prompt"),
        ({}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt[1]"),
        ({"prompt": "a", "min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"prompt": "a", "structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
        ({"prompt": "a", "structured_outputs": {"structural_tag": "{}"}}, "structured_outputs"),
        (
            {"prompt": "a", "response_format": {"type": "json_object"}, "ignore_eos": True},
            "ignore_eos",
        ),
        ({"prompt": "a", "stream": True, "stream_options": {"other": True}}, "stream_options"),
    ],
)
def test_what_cannot_be_is_400(api: Api, body: dict[str, Any], param: str) -> None:
    assert api.refused(PATH, **body)["param"] == param


@pytest.mark.parametrize(
    ("feature", "body"),
    [
        ("seed", {"seed": 1}),
        ("stop", {"stop": "x"}),
        ("logprobs", {"logprobs": 1}),
        ("prompt_logprobs", {"logprobs": 1, "echo": True}),
        ("grammar", {"response_format": {"type": "json_object"}}),
        ("min_tokens", {"min_tokens": 1}),
        ("skip_special_tokens", {"skip_special_tokens": False}),
        ("ignore_eos", {"ignore_eos": True}),
    ],
)
def test_what_the_engine_lacks_is_400_and_names_one_that_has_it(
    feature: str, body: dict[str, Any]
) -> None:
    class Poor(Talker):
        capabilities = Talker.capabilities - {feature}

    with serving(engine_class=Poor) as api:
        error = api.refused(PATH, prompt="a", **body)
        assert error["code"] == "unsupported"
        assert "--infer_type" in error["message"]
