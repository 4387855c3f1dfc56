"""The parameters of /infer: what is taken, what is refused, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from gpupool.api.params import Ask, parse_params
from gpupool.capabilities import ENGINES, FEATURES
from gpupool.engines.base import ModelInfo, SamplingParams
from gpupool.errors import BadRequest

ALL = frozenset(FEATURES)
MODEL = ModelInfo("m", context_tokens=2048, vocab_size=1000, slots=8)


def parse(given: dict[str, Any], able: frozenset[str] = ALL, **defaults: Any) -> Ask:
    return parse_params(given, defaults, able, MODEL)


def refusal(given: dict[str, Any], able: frozenset[str] = ALL) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parse(given, able)
    return caught.value


def test_nothing_given_is_the_protocols_defaults() -> None:
    assert parse({}) == Ask(SamplingParams(), n=1, best_of=1, beam_search=False, score=False)


def test_engine_defaults_hold_until_the_request_says_otherwise() -> None:
    assert parse({}, temperature=0.1, max_tokens=400).sampling.max_tokens == 400
    assert parse({"max_tokens": 3}, max_tokens=400).sampling.max_tokens == 3


def test_the_stock_parameter_file_is_taken_as_it_is() -> None:
    stock = {
        "temperature": 0.8,
        "top_p": 0.95,
        "max_tokens": 300,
        "presence_penalty": 0,
        "sampling_num": 1,
        "stop": None,
        "request_id": None,
        "prompt_logprobs": 0,
    }
    ask = parse(stock)
    assert ask.score
    assert ask.sampling.max_tokens == 300


def test_the_stock_beam_file_means_beam_search() -> None:
    ask = parse(
        {
            "use_beam_search": True,
            "best_of": 10,
            "temperature": 0,
            "top_k": -1,
            "early_stopping": "never",
        }
    )
    assert ask.beam_search
    assert ask.sampling.beam_width == 10
    assert ask.sampling.num_beams_returned == 1
    assert ask.sampling.early_stopping == "never"


def test_transformers_names_mean_the_same() -> None:
    ask = parse({"max_new_tokens": 7, "do_sample": False, "num_return_sequences": 2})
    assert (ask.sampling.max_tokens, ask.sampling.temperature, ask.n) == (7, 0.0, 2)


def test_a_list_or_a_string_of_stops() -> None:
    assert parse({"stop": "x"}).sampling.stop == ("x",)
    assert parse({"stop": ["x", "yz"]}).sampling.stop == ("x", "yz")


def test_a_tiny_temperature_is_greedy() -> None:
    assert parse({"temperature": 1e-30}).sampling.temperature == 0


def test_a_seed_beyond_the_signed_range_is_folded() -> None:
    assert parse({"seed": (1 << 64) - 1}).sampling.seed == -1


def test_bias_keys_become_token_ids() -> None:
    assert parse({"logit_bias": {"5": -100}}).sampling.logit_bias == {5: -100.0}


def test_top_k_zero_is_no_limit() -> None:
    assert parse({"top_k": 0}).sampling.top_k == -1


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "1"},
        {"temperature": True},
        {"temperature": [1]},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -2},
        {"top_k": 1.5},
        {"min_p": 2},
        {"presence_penalty": 3},
        {"frequency_penalty": -3},
        {"repetition_penalty": 0},
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"max_tokens": 2049},
        {"max_tokens": 10**12},
        {"max_tokens": 4, "min_tokens": 5},
        {"n": 0},
        {"n": 10**9},
        {"best_of": 1, "n": 2},
        {"seed": 1 << 64},
        {"seed": -(1 << 63) - 1},
        {"seed": 1.5},
        {"logprobs": 21},
        {"prompt_logprobs": -1},
        {"stop": ""},
        {"stop": ["x"] * 65},
        {"stop": ["x" * 1025]},
        {"stop": [1]},
        {"stop": ["\ud800"]},
        {"early_stopping": 1},
        {"stop": {}},
        {"stop_token_ids": [1000]},
        {"stop_token_ids": [-1]},
        {"stop_token_ids": [True]},
        {"stop_token_ids": 5},
        {"logit_bias": {"1000": 1}},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {"1": float("nan")}},
        {"logit_bias": {"1": float("inf")}},
        {"logit_bias": {"1": 101}},
        {"logit_bias": {"1": "1"}},
        {"logit_bias": [1]},
        {"logit_bias": {str(i): 1 for i in range(1025)}},
        {"ignore_eos": 1},
        {"do_sample": "yes"},
        {"early_stopping": "sometimes"},
        {"max_tokens": 4, "max_new_tokens": 4},
    ],
    ids=lambda given: str(given)[:40],
)
def test_a_value_that_cannot_be_is_refused_by_name(given: dict[str, Any]) -> None:
    error = refusal(given)
    assert error.status == 400
    assert error.param in given or error.param == "max_tokens"


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    error = refusal({"temprature": 1})
    assert "temprature" in str(error)
    assert "'temperature'" in str(error)
    assert error.code == "unknown_parameter"


def test_who_asks_infer_for_a_stream_is_told_where_streams_are() -> None:
    assert str(refusal({"stream": True})) == (
        "unknown parameter 'stream'; streams are at /v1/completions and /v1/chat/completions"
    )


def test_a_missing_feature_names_the_engines_that_have_it() -> None:
    error = refusal({"use_beam_search": True, "best_of": 2}, ENGINES["llama_cpp"])
    assert error.code == "unsupported"
    assert "vllm" in str(error)
    assert "transformers" in str(error)


def test_a_neutral_value_needs_no_feature() -> None:
    neutral = {"min_p": 0, "repetition_penalty": 1.0, "presence_penalty": 0, "ignore_eos": False}
    assert parse(neutral, frozenset()).sampling == SamplingParams()


@pytest.mark.parametrize("feature", sorted(ALL - {"beam_search", "grammar"}))
def test_each_feature_is_refused_where_it_is_missing(feature: str) -> None:
    values: dict[str, Any] = {
        "stop": "x",
        "stop_token_ids": [1],
        "ignore_eos": True,
        "skip_special_tokens": False,
        "logit_bias": {"1": 1},
        "repetition_penalty": 1.5,
    }
    error = refusal({feature: values.get(feature, 1)}, ALL - {feature})
    assert error.code == "unsupported"


def test_best_of_without_beams_ranks_samples_by_log_probability() -> None:
    ask = parse({"best_of": 4, "n": 2})
    assert (ask.n, ask.best_of, ask.sampling.logprobs) == (2, 4, 0)
