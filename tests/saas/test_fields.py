"""What a host is sent for a request, and what becomes of its answer."""

from __future__ import annotations

from typing import Any

import pytest

from gpupool.capabilities import ENGINES
from gpupool.engines.base import SamplingParams, TokenLogprob, Usage
from gpupool.engines.saas import SaasEngine
from gpupool.engines.saas_args import parse_engine_args
from gpupool.engines.saas_errors import HostGarbled
from gpupool.engines.saas_fields import CHAT, COMPLETIONS, EMBEDDINGS, FIELDS, LACKING, ask_host
from gpupool.engines.saas_generation import body_of, completion_of, text_of, tokens_of
from gpupool.errors import BadRequest

USER = [{"role": "user", "content": "hello"}]


def sent(body: dict[str, Any], *words: str, path: str = CHAT) -> dict[str, Any]:
    return ask_host(path, body, parse_engine_args(words), "there")


def test_the_model_has_its_name_at_the_host() -> None:
    assert sent({"model": "here", "messages": USER}) == {"model": "there", "messages": USER}


def test_what_means_nothing_is_not_sent() -> None:
    body = {"messages": USER, "seed": None, "min_p": 0, "top_k": -1, "echo": False, "best_of": 2}
    assert sent(body) == {"model": "there", "messages": USER}


def test_what_all_requests_get_gives_way_to_what_one_says() -> None:
    words = ("--saas.reasoning_effort", "low", "--saas.extra_body", '{"top_a": 1, "top_b": 2}')
    assert sent({"messages": USER}, *words) == {
        "model": "there", "messages": USER, "reasoning_effort": "low", "top_a": 1, "top_b": 2,
    }  # fmt: skip
    own = sent({"messages": USER, "reasoning_effort": "high", "top_k": 1}, *words)
    assert (own["reasoning_effort"], own["top_k"]) == ("high", 1)


def test_what_a_route_does_not_have_is_not_sent_there() -> None:
    words = ("--saas.reasoning_effort", "low")
    assert sent({"input": "a"}, *words, path=EMBEDDINGS) == {"model": "there", "input": "a"}


@pytest.mark.parametrize("name", LACKING)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_what_only_weights_can_do_is_refused_with_who_has_it(name: str, path: str) -> None:
    assert name in FIELDS[path]
    value: Any = [5] if name == "stop_token_ids" else 0 if name == "prompt_logprobs" else 2
    if name in ("min_p", "echo", "use_beam_search", "ignore_eos", "early_stopping"):
        value = True
    with pytest.raises(BadRequest, match="--infer_type vllm or transformers") as refused:
        sent({name: value if name != "skip_special_tokens" else False}, path=path)
    assert refused.value.param == name


def test_a_prompt_is_a_message_or_a_text() -> None:
    params = SamplingParams(max_tokens=5, temperature=0, seed=3, stop=("x",), logprobs=2, top_k=4)
    common = {"max_tokens": 5, "temperature": 0, "seed": 3, "stop": ["x"], "top_k": 4}
    as_chat = {"logprobs": True, "top_logprobs": 2, "messages": USER}
    assert body_of("hello", params, CHAT) == common | as_chat
    as_text = {"logprobs": 2, "prompt": "hello"}
    assert body_of("hello", params, COMPLETIONS) == common | as_text


def test_every_capability_has_a_field() -> None:
    params = SamplingParams(
        logprobs=1, seed=1, stop=("x",), presence_penalty=1, frequency_penalty=1, logit_bias={1: 1}
    )
    assert set(body_of("x", params, CHAT)) >= ENGINES["saas"]
    assert SaasEngine.capabilities == ENGINES["saas"]


@pytest.mark.parametrize("text", ["hello", "é", "日本語", "\U0001f600", "\0"])
def test_a_text_is_its_characters(text: str) -> None:
    assert text_of(tokens_of(text)) == text


def test_a_chats_log_probabilities() -> None:
    content = [{"token": "a", "logprob": -1, "top_logprobs": [{"token": "b", "logprob": -2}]}]
    choice = {"message": {"content": "a"}, "finish_reason": "length"}
    answer = {"choices": [choice | {"logprobs": {"content": content}}]}
    found = completion_of(answer | {"usage": {"prompt_tokens": 4}}, CHAT, True)
    assert found.logprobs == (TokenLogprob(-1, "a", -1, (TokenLogprob(-1, "b", -2),)),)
    assert (found.finish_reason, found.usage, found.num_tokens) == ("length", Usage(4, 0), 0)


def test_a_completions_log_probabilities() -> None:
    told = {"tokens": ["a"], "token_logprobs": [-1], "top_logprobs": [{"b": -2}]}
    answer = {"choices": [{"text": "a", "finish_reason": "stop", "logprobs": told}]}
    found = completion_of(answer, COMPLETIONS, True)
    assert found.logprobs == (TokenLogprob(-1, "a", -1, (TokenLogprob(-1, "b", -2),)),)


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": []},
        {},
        {"choices": [{}]},
        {"choices": "x"},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": 5}}]},
        {"choices": [{"message": {}, "logprobs": {"content": [{"token": 1}]}}]},
        {"choices": [{"message": {}}], "usage": {"prompt_tokens": "many"}},
    ],
)
def test_an_answer_of_another_shape_is_an_error(answer: dict[str, Any]) -> None:
    with pytest.raises(HostGarbled):
        completion_of(answer, CHAT, True)
