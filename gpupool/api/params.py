"""The `params` of /infer -> SamplingParams, checked before any engine sees them (pure).

Names are vLLM's and transformers', so that parameter files written for either work unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from gpupool.capabilities import FEATURES, engines_with
from gpupool.engines.base import ModelInfo, SamplingParams
from gpupool.errors import BadRequest
from gpupool.nearest import nearest_hint

DEFAULT_MAX_TOKENS = SamplingParams().max_tokens
GREEDY_BELOW = 1e-5  # a smaller temperature is greedy, as in vLLM
MAX_BIASED_TOKENS = 1024
MAX_SEQUENCES = 128
MAX_STOPS = 64
MAX_STOP_CHARS = 1024


@dataclass(frozen=True, slots=True)
class Number:
    """The values a numeric parameter may have, and the feature it needs unless neutral."""

    kind: type
    low: float
    high: float
    feature: str | None = None
    neutral: float | None = None


NUMBERS: dict[str, Number] = {
    "temperature": Number(float, 0, 2),
    "top_p": Number(float, 0, 1),
    "top_k": Number(int, -1, 1 << 31),
    "min_p": Number(float, 0, 1, "min_p", 0),
    "presence_penalty": Number(float, -2, 2, "presence_penalty", 0),
    "frequency_penalty": Number(float, -2, 2, "frequency_penalty", 0),
    "repetition_penalty": Number(float, 0.01, 100, "repetition_penalty", 1),
    "length_penalty": Number(float, -100, 100),
    "max_tokens": Number(int, 0, 1 << 31),
    "min_tokens": Number(int, 0, 1 << 31, "min_tokens", 0),
    "seed": Number(int, -(1 << 63), (1 << 64) - 1, "seed"),
    "n": Number(int, 1, MAX_SEQUENCES),
    "best_of": Number(int, 1, MAX_SEQUENCES),
    "num_beams": Number(int, 1, MAX_SEQUENCES),
    "logprobs": Number(int, 0, 20, "logprobs"),
    "prompt_logprobs": Number(int, 0, 20, "prompt_logprobs"),
}
FLAGS = ("use_beam_search", "do_sample", "ignore_eos", "skip_special_tokens")
ALIASES = {"max_new_tokens": "max_tokens", "num_return_sequences": "n"}
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
        _need("beam_search", "use_beam_search", able)
    n = merged.pop("n", 1)
    best_of = merged.pop("best_of", max(n, merged.pop("num_beams", n)) if beam else n)
    if best_of < n:
        raise BadRequest(f"best_of is {best_of}, fewer than n, {n}", param="best_of")
    if best_of > n and not beam:
        _need("logprobs", "best_of", able)
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
                f"unknown parameter {_show(name)}{nearest_hint(name, KNOWN)}",
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
        return _number(name, value, able)
    if name in FLAGS:
        if not isinstance(value, bool):
            raise BadRequest(f"{name} is {_show(value)}; it must be true or false", param=name)
        if (name == "ignore_eos" and value) or (name == "skip_special_tokens" and not value):
            _need(name, name, able)
        return value
    if name == "stop":
        return _stops(value, able)
    if name == "stop_token_ids":
        return _token_ids(value, able, model)
    if name == "logit_bias":
        return _bias(value, able, model)
    if value is not True and value is not False and value != "never":
        raise BadRequest(
            f'early_stopping is {_show(value)}; it must be true, false or "never"', param=name
        )
    return value


def _number(name: str, value: Any, able: frozenset[str]) -> float:
    rule = NUMBERS[name]
    wanted = "a whole number" if rule.kind is int else "a number"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(f"{name} is {_show(value)}; it must be {wanted}", param=name)
    # NaN is in no range.
    if not rule.low <= value <= rule.high:
        raise BadRequest(
            f"{name} is {_show(value)}; it must be from {rule.low} to {rule.high}", param=name
        )
    if rule.kind is int and value != int(value):
        raise BadRequest(f"{name} is {value}; it must be a whole number", param=name)
    if name == "top_p" and value == 0:
        raise BadRequest("top_p is 0; it must be above 0, up to 1", param=name)
    if rule.feature is not None and value != rule.neutral:
        _need(rule.feature, name, able)
    number = rule.kind(value)
    if name == "top_k" and number == 0:
        return -1
    if name == "seed" and number >= 1 << 63:
        number -= 1 << 64
    return number  # type: ignore[no-any-return]


def _stops(value: Any, able: frozenset[str]) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise BadRequest(f"stop is {_show(value)}; send a string or a list of them", param="stop")
    if len(stops) > MAX_STOPS or any(not 0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise BadRequest(
            f"stop takes at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARS} characters",
            param="stop",
        )
    if any("\ud800" <= char <= "\udfff" for stop in stops for char in stop):
        raise BadRequest("stop has half of a surrogate pair", param="stop")
    if stops:
        _need("stop", "stop", able)
    return tuple(stops)


def _token_ids(value: Any, able: frozenset[str], model: ModelInfo) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_STOPS:
        raise BadRequest(
            f"stop_token_ids is {_show(value)}; send a list of at most {MAX_STOPS} token ids",
            param="stop_token_ids",
        )
    if value:
        _need("stop_token_ids", "stop_token_ids", able)
    return tuple(_token_id("stop_token_ids", item, model) for item in value)


def _token_id(param: str, item: Any, model: ModelInfo) -> int:
    if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < model.vocab_size:
        raise BadRequest(
            f"{param} has {_show(item)}; token ids of this model are 0 to {model.vocab_size - 1}",
            param=param,
        )
    return item


def _bias(value: Any, able: frozenset[str], model: ModelInfo) -> dict[int, float]:
    if not isinstance(value, dict) or len(value) > MAX_BIASED_TOKENS:
        raise BadRequest(
            f"logit_bias must be an object of at most {MAX_BIASED_TOKENS} token ids with numbers",
            param="logit_bias",
        )
    bias = {}
    for key, amount in value.items():
        token = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else key
        is_number = isinstance(amount, int | float) and not isinstance(amount, bool)
        if not is_number or not -100 <= amount <= 100:
            raise BadRequest(
                f"logit_bias[{key!r}] is {_show(amount)}; it must be from -100 to 100",
                param="logit_bias",
            )
        bias[_token_id("logit_bias", token, model)] = float(amount)
    if bias:
        _need("logit_bias", "logit_bias", able)
    return bias


def _wants_beams(values: Mapping[str, Any]) -> bool:
    if "use_beam_search" in values:
        return bool(values["use_beam_search"])
    return int(values.get("num_beams", 1)) > 1


def _need(feature: str, param: str, able: frozenset[str]) -> None:
    if feature in able:
        return
    engines = engines_with(feature)
    where = f"--infer_type {' or '.join(engines)} has it" if engines else "no engine has it"
    raise BadRequest(
        f"{param}: this pool's engine has no {FEATURES[feature]}; {where}",
        param=param,
        code="unsupported",
    )


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


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
