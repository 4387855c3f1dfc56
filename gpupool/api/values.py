"""Checks of single values in request bodies; BadRequest says what was found (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpupool.capabilities import FEATURES, engines_with
from gpupool.engines.base import ModelInfo
from gpupool.errors import BadRequest

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


def check_number(name: str, value: Any, able: frozenset[str]) -> float:
    """One of NUMBERS."""
    return check_in_range(name, value, NUMBERS[name], able)


def check_in_range(name: str, value: Any, rule: Number, able: frozenset[str]) -> float:
    """The value as the type that the rule says."""
    wanted = "a whole number" if rule.kind is int else "a number"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(f"{name} is {show(value)}; it must be {wanted}", param=name)
    # NaN is in no range.
    if not rule.low <= value <= rule.high:
        raise BadRequest(
            f"{name} is {show(value)}; it must be from {rule.low} to {rule.high}", param=name
        )
    if rule.kind is int and value != int(value):
        raise BadRequest(f"{name} is {value}; it must be a whole number", param=name)
    if name == "top_p" and value == 0:
        raise BadRequest("top_p is 0; it must be above 0, up to 1", param=name)
    if rule.feature is not None and value != rule.neutral:
        need(rule.feature, name, able)
    whole = rule.kind(value)
    if name == "top_k" and whole == 0:
        return -1
    if name == "seed" and whole >= 1 << 63:
        whole -= 1 << 64
    return whole  # type: ignore[no-any-return]


def check_stops(value: Any, able: frozenset[str]) -> tuple[str, ...]:
    """A string or a list of them; each once over is the end of a text."""
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise BadRequest(f"stop is {show(value)}; send a string or a list of them", param="stop")
    if len(stops) > MAX_STOPS or any(not 0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise BadRequest(
            f"stop takes at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARS} characters",
            param="stop",
        )
    if any("\ud800" <= char <= "\udfff" for stop in stops for char in stop):
        raise BadRequest("stop has half of a surrogate pair", param="stop")
    if stops:
        need("stop", "stop", able)
    return tuple(stops)


def check_token_ids(value: Any, able: frozenset[str], model: ModelInfo) -> tuple[int, ...]:
    """A short list of ids of this model."""
    if not isinstance(value, list) or len(value) > MAX_STOPS:
        raise BadRequest(
            f"stop_token_ids is {show(value)}; send a list of at most {MAX_STOPS} token ids",
            param="stop_token_ids",
        )
    if value:
        need("stop_token_ids", "stop_token_ids", able)
    return tuple(check_token_id("stop_token_ids", item, model) for item in value)


def check_token_id(param: str, item: Any, model: ModelInfo) -> int:
    """One id of this model."""
    if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < model.vocab_size:
        raise BadRequest(
            f"{param} has {show(item)}; token ids of this model are 0 to {model.vocab_size - 1}",
            param=param,
        )
    return item


def check_bias(value: Any, able: frozenset[str], model: ModelInfo) -> dict[int, float]:
    """An object of token ids, as JSON writes them, with finite numbers."""
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
                f"logit_bias[{key!r}] is {show(amount)}; it must be from -100 to 100",
                param="logit_bias",
            )
        bias[check_token_id("logit_bias", token, model)] = float(amount)
    if bias:
        need("logit_bias", "logit_bias", able)
    return bias


def nth_seed(seed: int, index: int) -> int:
    """The index-th completion of a seeded prompt has the seed + index, as in vLLM, within the
    64 bits that a seed has."""
    return (seed + index + (1 << 63)) % (1 << 64) - (1 << 63)


def need(feature: str, param: str, able: frozenset[str]) -> None:
    """400 unless the engine has the feature; it says which engine does."""
    if feature in able:
        return
    engines = engines_with(feature)
    where = f"--infer_type {' or '.join(engines)} has it" if engines else "no engine has it"
    raise BadRequest(
        f"{param}: this pool's engine has no {FEATURES[feature]}; {where}",
        param=param,
        code="unsupported",
    )


def show(value: Any) -> str:
    """A value in a message: short."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
