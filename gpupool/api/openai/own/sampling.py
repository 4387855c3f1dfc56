"""A body's parameters as SamplingParams (pure)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpupool.api.openai.own.grammar import read_grammar
from gpupool.api.values import (
    check_bias,
    check_number,
    check_stops,
    check_token_ids,
    need,
    nth_seed,
)
from gpupool.engines.base import Grammar, ModelInfo, SamplingParams
from gpupool.errors import BadRequest

GREEDY_BELOW = 1e-5  # a smaller temperature is greedy, as in vLLM
NUMBERS = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "seed", "min_tokens",
)  # fmt: skip


def read_sampling(
    body: dict[str, Any], able: frozenset[str], model: ModelInfo, grammar: Grammar | None = None
) -> SamplingParams:
    """All but the length. `grammar` is what the body's tools ask for, if they do."""
    given = {name: value for name, value in body.items() if value is not None}
    values: dict[str, Any] = {
        name: check_number(name, given[name], able) for name in NUMBERS if name in given
    }
    if values.get("temperature", 1.0) < GREEDY_BELOW:
        values["temperature"] = 0.0
    if "stop" in given:
        values["stop"] = check_stops(given["stop"], able)
    if "stop_token_ids" in given:
        values["stop_token_ids"] = check_token_ids(given["stop_token_ids"], able, model)
    if "logit_bias" in given:
        values["logit_bias"] = check_bias(given["logit_bias"], able, model)
    if given.get("ignore_eos"):
        need("ignore_eos", "ignore_eos", able)
        values["ignore_eos"] = True
    if given.get("skip_special_tokens") is False:
        need("skip_special_tokens", "skip_special_tokens", able)
        values["skip_special_tokens"] = False
    values["grammar"] = _choose_grammar(body, able, grammar)
    return SamplingParams(**values)


def _choose_grammar(
    body: dict[str, Any], able: frozenset[str], of_tools: Grammar | None
) -> Grammar | None:
    param, own = read_grammar(body)
    if own is not None and of_tools is not None:
        raise BadRequest(f"{param} and tools both say what the text must be; send one", param=param)
    grammar = own or of_tools
    if grammar is None:
        return None
    need("grammar", param or "tool_choice", able)
    for name in ("ignore_eos", "min_tokens"):
        if body.get(name):
            raise BadRequest(
                f"{name} is set, but the text's end is where its grammar ends", param=name
            )
    return grammar


def with_length(
    params: SamplingParams, num_prompt: int, wanted: int | None, model: ModelInfo, param: str
) -> SamplingParams:
    """With as many tokens as were asked for behind a prompt, or as there is room for. `param`
    names the prompt."""
    context = model.context_tokens
    room = context - num_prompt
    if room < (0 if wanted == 0 else 1):
        raise BadRequest(
            f"{param} has {num_prompt} tokens; this model's context has {context}, "
            "the completion's included",
            param=param,
            code="context_length_exceeded",
        )
    if wanted is not None and wanted > room:
        raise BadRequest(
            f"{param} has {num_prompt} tokens and max_tokens is {wanted}; together they are more "
            f"than this model's context of {context} tokens",
            param="max_tokens",
            code="context_length_exceeded",
        )
    length = room if wanted is None else wanted
    if length and params.min_tokens > length:
        raise BadRequest(
            f"min_tokens is {params.min_tokens}, more than the {length} tokens of the completion",
            param="min_tokens",
        )
    return replace(params, max_tokens=length)


def nth(params: SamplingParams, index: int) -> SamplingParams:
    """Of the index-th choice: a seed gives each another text."""
    if params.seed is None or index == 0:
        return params
    return replace(params, seed=nth_seed(params.seed, index))
