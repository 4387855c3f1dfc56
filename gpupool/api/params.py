"""The `params` of /infer -> SamplingParams, checked before any engine sees them (pure).

Names are vLLM's and transformers', so that parameter files written for either work unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from gpupool.api.values import (
    NUMBERS,
    check_bias,
    check_number,
    check_stops,
    check_token_ids,
    need,
    show,
)
from gpupool.engines.base import ModelInfo, SamplingParams
from gpupool.errors import BadRequest
from gpupool.nearest import nearest_hint

DEFAULT_MAX_TOKENS = SamplingParams().max_tokens
GREEDY_BELOW = 1e-5  # a smaller temperature is greedy, as in vLLM
FLAGS = ("use_beam_search", "do_sample", "ignore_eos", "skip_special_tokens")
ALIASES = {"max_new_tokens": "max_tokens", "num_return_sequences": "n"}
STREAMS = "; streams are at /v1/completions and /v1/chat/completions"
OTHERS = ("stop", "stop_token_ids", "logit_bias", "early_stopping")
CLIENTS_OWN = ("sampling_num", "request_id")
"""Written into parameter files by evaluation clients for themselves; mean nothing here."""

KNOWN = (*NUMBERS, *FLAGS, *ALIASES, *OTHERS, *CLIENTS_OWN)


@dataclass(frozen=True, slots=True)
class Ask:
    """What one /infer request wants of each of its prompts."""

    sampling: SamplingParams
    n: int  # completions returned
    best_of: int  # completions generated; the n most probable are returned
    beam_search: bool
    score: bool  # the prompt's log-probabilities are wanted


def parse_params(
    given: Mapping[str, Any], defaults: Mapping[str, Any], able: frozenset[str], model: ModelInfo
) -> Ask:
    """Check every name and value; BadRequest names the first that cannot be."""
    values = _resolve_names(given)
    asked = {name: _check(name, value, able, model) for name, value in values.items()}
    merged = {**defaults, **asked}
    beam = _wants_beams(merged)
    if beam:
        need("beam_search", "use_beam_search", able)
    n = merged.pop("n", 1)
    best_of = merged.pop("best_of", max(n, merged.pop("num_beams", n)) if beam else n)
    if best_of < n:
        raise BadRequest(f"best_of is {best_of}, fewer than n, {n}", param="best_of")
    if best_of > n and not beam:
        need("logprobs", "best_of", able)
        merged.setdefault("logprobs", 0)
    if not merged.pop("do_sample", True) or merged.get("temperature", 1.0) < GREEDY_BELOW:
        merged["temperature"] = 0.0
    score = merged.pop("prompt_logprobs", None) is not None
    _check_lengths(merged, model, score)
    if beam:
        merged |= {"beam_width": best_of, "num_beams_returned": n}
    accepted = {field.name for field in fields(SamplingParams)}
    sampling = SamplingParams(**{name: merged[name] for name in merged if name in accepted})
    return Ask(sampling, n, best_of, beam, score)


def _resolve_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse unknown names, drop nulls and the client's own, translate aliases."""
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in KNOWN:
            raise BadRequest(
                f"unknown parameter {show(name)}"
                f"{STREAMS if name == 'stream' else nearest_hint(name, KNOWN)}",
                param=name[:60],
                code="unknown_parameter",
            )
        if value is None or name in CLIENTS_OWN:
            continue
        target = ALIASES.get(name, name)
        if target in values:
            raise BadRequest(f"{name} and {target} are the same parameter; send one", param=name)
        values[target] = value
    return values


def _check(name: str, value: Any, able: frozenset[str], model: ModelInfo) -> Any:
    if name in NUMBERS:
        return check_number(name, value, able)
    if name in FLAGS:
        if not isinstance(value, bool):
            raise BadRequest(f"{name} is {show(value)}; it must be true or false", param=name)
        if (name == "ignore_eos" and value) or (name == "skip_special_tokens" and not value):
            need(name, name, able)
        return value
    if name == "stop":
        return check_stops(value, able)
    if name == "stop_token_ids":
        return check_token_ids(value, able, model)
    if name == "logit_bias":
        return check_bias(value, able, model)
    if value is not True and value is not False and value != "never":
        raise BadRequest(
            f'early_stopping is {show(value)}; it must be true, false or "never"', param=name
        )
    return value


def _wants_beams(values: Mapping[str, Any]) -> bool:
    if "use_beam_search" in values:
        return bool(values["use_beam_search"])
    return int(values.get("num_beams", 1)) > 1


def _check_lengths(values: dict[str, Any], model: ModelInfo, score: bool) -> None:
    max_tokens = values.get("max_tokens", DEFAULT_MAX_TOKENS)
    if max_tokens == 0 and not score:
        raise BadRequest("max_tokens is 0; that needs prompt_logprobs", param="max_tokens")
    if max_tokens > model.context_tokens:
        raise BadRequest(
            f"max_tokens is {max_tokens}; this model's context has {model.context_tokens} tokens",
            param="max_tokens",
        )
    if values.get("min_tokens", 0) > max_tokens:
        raise BadRequest(
            f"min_tokens is {values['min_tokens']}, more than max_tokens, {max_tokens}",
            param="min_tokens",
        )
