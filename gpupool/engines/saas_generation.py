"""A prompt of /infer as a request to a host, and its answer as a completion (pure; worker process).

The host keeps the tokenizer, so that a prompt's tokens are its characters here, and a completion
has no token ids; how many there were is what the host has counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gpupool.engines.base import Completion, SamplingParams, TokenLogprob, Usage
from gpupool.engines.saas_errors import HostGarbled
from gpupool.engines.saas_fields import CHAT, COMPLETIONS

Json = dict[str, Any]

VOCAB_SIZE = 0x110000  # characters
NO_ID = -1
MAX_COUNT = 1 << 40


def tokens_of(text: str) -> list[int]:
    """A text's characters."""
    return list(map(ord, text))


def text_of(tokens: Sequence[int]) -> str:
    """The text again."""
    return "".join(map(chr, tokens))


def path_of(infer_as: str) -> str:
    """The route that a prompt goes to."""
    return CHAT if infer_as == "chat" else COMPLETIONS


def body_of(prompt: str, params: SamplingParams, path: str) -> Json:
    """What is asked of the host. A value that means nothing is left out: some models take no
    other, and refuse it even so."""
    body: Json = {"max_tokens": params.max_tokens, "temperature": params.temperature}
    neutral = {"top_p": 1.0, "top_k": -1, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    body |= {
        name: getattr(params, name)
        for name, value in neutral.items()
        if getattr(params, name) != value
    }
    if params.seed is not None:
        body["seed"] = params.seed
    if params.stop:
        body["stop"] = list(params.stop)
    if params.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in params.logit_bias.items()}
    if path == COMPLETIONS:
        logprobs = {} if params.logprobs is None else {"logprobs": params.logprobs}
        return body | logprobs | {"prompt": prompt}
    if params.logprobs is not None:
        body["logprobs"] = True
        if params.logprobs:
            body["top_logprobs"] = params.logprobs
    return body | {"messages": [{"role": "user", "content": prompt}]}


def completion_of(content: Json, path: str, wants_logprobs: bool) -> Completion:
    """The one choice of an answer; HostGarbled if there is none."""
    try:
        choice = content["choices"][0]
        text = choice["text"] if path == COMPLETIONS else choice["message"].get("content")
        logprobs = _finite_logprobs(choice) if wants_logprobs else None
        usage = usage_of(content)
        if not isinstance(text, str | None):
            raise TypeError(f"a text that is {type(text).__name__}")
        return Completion(
            text or "",
            (),
            str(choice.get("finish_reason") or "stop"),
            logprobs,
            Usage(_count(usage, "prompt_tokens"), _count(usage, "completion_tokens")),
        )
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise HostGarbled(f"an answer of another shape: {type(error).__name__}") from None


def _finite_logprobs(choice: Json) -> tuple[TokenLogprob, ...]:
    found = read_logprobs(choice.get("logprobs") or {})
    if not all(math.isfinite(one.logprob) for token in found for one in (token, *token.top)):
        raise ValueError("a log-probability that is no number")
    return found


def usage_of(content: Json) -> Json:
    """What the host has counted, without what cannot be: our counters never go back."""
    told = content.get("usage")
    if not isinstance(told, dict):
        return {}
    return {name: value for name, value in told.items() if not _is_odd(value)}


def _count(usage: Json, name: str) -> int:
    found = usage.get(name) or 0
    if not isinstance(found, int):
        raise TypeError(f"a usage of {type(found).__name__}")
    return found


def _is_odd(value: Any) -> bool:
    return isinstance(value, int | float) and not (
        isinstance(value, int) and 0 <= value <= MAX_COUNT
    )


def read_logprobs(told: Json) -> tuple[TokenLogprob, ...]:
    """Of a chat, or of a completion, which has lists side by side."""
    if "content" in told:
        return tuple(
            TokenLogprob(
                NO_ID,
                one["token"],
                float(one["logprob"]),
                tuple(
                    TokenLogprob(NO_ID, other["token"], float(other["logprob"]))
                    for other in one.get("top_logprobs") or ()
                ),
            )
            for one in told["content"] or ()
        )
    tokens, values = told.get("tokens") or (), told.get("token_logprobs") or ()
    best = told.get("top_logprobs") or [{}] * len(tokens)
    return tuple(
        TokenLogprob(
            NO_ID,
            token,
            float(value),
            tuple(TokenLogprob(NO_ID, other, float(at)) for other, at in (top or {}).items()),
        )
        for token, value, top in zip(tokens, values, best, strict=True)
    )
