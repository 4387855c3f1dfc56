"""Which fields the OpenAI routes have for a hosted model, as tables, and what its host is sent
(pure; worker process)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpupool.capabilities import ENGINES, FEATURES, engines_with
from gpupool.engines.saas_args import REQUEST_FIELDS, SaasArgs
from gpupool.errors import BadRequest

Json = dict[str, Any]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
EMBEDDINGS = "/v1/embeddings"

COMMON = frozenset(
    {"model", "user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"}
)
SAMPLED = frozenset(
    {
        "stream", "stream_options", "n", "best_of", "seed", "stop", "temperature", "top_p",
        "top_k", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "max_tokens",
    }
)  # fmt: skip
CHAT_ONLY = frozenset(
    {
        "messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice",
        "parallel_tool_calls", "response_format", "functions", "function_call", "modalities",
        "audio", "prediction", "reasoning_effort", "verbosity", "store", "thinking",
        "web_search_options", "prompt_cache_retention",
    }
)  # fmt: skip

LACKING: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "echo": ("prompt_logprobs", (None, False)),
    "prompt_logprobs": ("prompt_logprobs", (None,)),
    "use_beam_search": ("beam_search", (None, False)),
    "length_penalty": ("beam_search", (None, 1)),
    "early_stopping": ("beam_search", (None, False)),
    "min_p": ("min_p", (None, 0)),
    "min_tokens": ("min_tokens", (None, 0)),
    "repetition_penalty": ("repetition_penalty", (None, 1)),
    "ignore_eos": ("ignore_eos", (None, False)),
    "stop_token_ids": ("stop_token_ids", (None, [])),
    "skip_special_tokens": ("skip_special_tokens", (None, True)),
    "structured_outputs": ("grammar", (None, {})),
}
"""What other engines do and no host: the feature that it is, and the values that ask for
nothing."""

FIELDS: Mapping[str, frozenset[str]] = {
    CHAT: COMMON | SAMPLED | CHAT_ONLY | frozenset(LACKING),
    COMPLETIONS: COMMON | SAMPLED | {"prompt", "suffix"} | frozenset(LACKING),
    EMBEDDINGS: COMMON | {"input", "encoding_format", "dimensions"},
}
"""By route: the names its body may have."""

ABSENT = dict.fromkeys(
    (
        "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/v1/score", "/score",
        "/v1/rerank", "/v2/rerank", "/rerank", "/pooling", "/classify",
    ),
    "a hosted model has chats, completions and embeddings here; ask its host itself for the rest",
) | dict.fromkeys(
    ("/tokenize", "/detokenize"), "its host keeps the tokenizer; another --infer_type has one"
)  # fmt: skip


def refuse_lacking(body: Mapping[str, Any]) -> None:
    """BadRequest for a field that asks for what only an engine with the weights can do."""
    for name, (feature, neutral) in LACKING.items():
        if name in body and body[name] not in neutral and feature not in ENGINES["saas"]:
            engines = " or ".join(engines_with(feature))
            raise BadRequest(
                f"{name}: a hosted model has no {FEATURES[feature]}; --infer_type {engines} has it",
                param=name,
                code="unsupported",
            )


def ask_host(path: str, body: Mapping[str, Any], args: SaasArgs, model: str) -> Json:
    """What the host is sent for a checked body."""
    refuse_lacking(body)
    dropped = {*LACKING, "best_of"} | ({"top_k"} if body.get("top_k") in (0, -1) else set())
    asked = {
        name: value for name, value in body.items() if value is not None and name not in dropped
    }
    defaults = {
        name: value
        for name, value in args.extra.items()
        if name in REQUEST_FIELDS and name in FIELDS[path]
    }
    more = args.extra.get("extra_body", {})
    return {**more, **defaults, **asked, "model": model}
