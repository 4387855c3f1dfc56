"""What a request of the OpenAI API may ask for, checked before any engine sees it (pure).

The engines check too, but each lets something through that stalls or ends it: seeds of more than
64 bits, regular expressions that never compile, schemas of a million levels. What is checked here
is checked alike on all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpupool.api.openai.content import (
    MAX_TEXTS,
    RENDERED,
    check_length,
    check_media,
    check_messages,
    check_texts,
)
from gpupool.api.openai.extras import check_extra
from gpupool.api.openai.grammars import check_grammars, check_tools
from gpupool.api.openai.routes import Route
from gpupool.api.values import (
    NUMBERS,
    Number,
    check_bias,
    check_in_range,
    check_number,
    check_stops,
    check_token_ids,
    need,
    show,
)
from gpupool.engines.base import ModelInfo
from gpupool.errors import BadRequest, NotFound
from gpupool.nearest import nearest_hint

Body = dict[str, Any]

OWN_NUMBERS = {
    "top_logprobs": Number(int, 0, 20, "logprobs", 0),
    "max_completion_tokens": Number(int, 1, 1 << 31),
    "max_output_tokens": Number(int, 1, 1 << 31),
    "max_tool_calls": Number(int, 1, 128),
    "truncate_prompt_tokens": Number(int, -1, 1 << 31),
    "dimensions": Number(int, 1, 1 << 16),
    "top_n": Number(int, 0, 1 << 16),
}
FLAGS = (
    "stream",
    "echo",
    "ignore_eos",
    "skip_special_tokens",
    "use_beam_search",
    "parallel_tool_calls",
    "add_special_tokens",
    "add_generation_prompt",
    "include_reasoning",
    "return_documents",
)
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens")
REFUSED = {
    "chat_template": "a chat template is a program; the operator sets it when the pool is started",
    "prompt_embeds": "embeddings as prompts are tensors from a client; send text or token ids",
    "kv_transfer_params": "the workers of a pool do not exchange KV caches",
    "ec_transfer_params": "the workers of a pool do not exchange what they have computed",
    "background": "a response is answered on the connection that asks for it",
    "previous_response_id": "responses are not kept; send the whole conversation in `input`",
}
NEUTRAL = (None, False)
MORE_RENDERED: dict[str, tuple[str, ...]] = {"chat": ("documents",), "responses": ("input",)}
REQUIRED = {"chat": "messages", "completion": "prompt", "responses": "input", "embedding": "input"}


@dataclass(frozen=True, slots=True)
class Able:
    """What the engine behind the API can do."""

    features: frozenset[str]
    """Of capabilities.FEATURES."""
    fields: Mapping[str, frozenset[str]]
    """By the path of a route: the names its body may have. A route that is not here is none of
    this engine's."""
    model: ModelInfo
    model_names: tuple[str, ...]
    """Under which the model may be asked for; the first is the one that answers say."""
    media_by_url: bool = False
    """Whether the engine may fetch pictures and sounds from the network for a client."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """By the path of a route that this engine has not: what it would need."""
    whole: frozenset[str] = frozenset()
    """Paths of routes whose lists stay together, as one sequence."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What the rest of the way needs to know of a checked body."""

    num_sequences: int  # that run in the engine
    stream: bool
    wants_usage: bool  # as the last event of a stream


def check(route: Route, body: Body, able: Able) -> Ask:
    """BadRequest or NotFound for the first thing that cannot be."""
    _check_names(route, body, able)
    check_model_name(body.get("model"), able)
    for name, value in body.items():
        if value is not None:
            _check_value(route, name, value, able)
    _check_together(route, body, able)
    if "messages" in body:
        check_messages(body["messages"])
    check_length(body, RENDERED + MORE_RENDERED.get(route.kind, ()), able.model.context_tokens)
    check_media(body, by_url=able.media_by_url)
    num_texts = check_texts(body, able.model) if route.kind != "chat" else 1
    check_grammars(body)
    check_tools(body)
    num_sequences = num_texts * (body.get("n") or 1)
    if body.get("stream") and num_sequences > MAX_TEXTS:
        raise BadRequest(
            f"{num_texts} prompts with n={body['n']} are {num_sequences} streams; a request may "
            f"have {MAX_TEXTS}",
            param="n",
        )
    return Ask(
        num_sequences=num_sequences,
        stream=bool(body.get("stream")),
        wants_usage=bool((body.get("stream_options") or {}).get("include_usage")),
    )


def check_model_name(name: Any, able: Able) -> None:
    """By the exact name; it never touches a file."""
    if name is None or name in able.model_names:
        return
    if not isinstance(name, str):
        raise BadRequest(f"model is {show(name)}; it must be a string", param="model")
    served = " or ".join(repr(served) for served in able.model_names)
    raise NotFound(
        f"the model {show(name)} is not served here; this is {served}",
        param="model",
        code="model_not_found",
    )


def _check_names(route: Route, body: Body, able: Able) -> None:
    known = able.fields[route.path]
    for name, value in body.items():
        if name in REFUSED and value not in NEUTRAL:
            raise BadRequest(f"{name} is refused: {REFUSED[name]}", param=name, code="unsupported")
        if name not in known and name not in REFUSED:
            raise BadRequest(
                f"unknown field {show(name)}{nearest_hint(name, tuple(known))}",
                param=name[:60],
                code="unknown_parameter",
            )


def _check_value(route: Route, name: str, value: Any, able: Able) -> None:
    features, model = able.features, able.model
    if name in FLAGS or (name == "logprobs" and route.kind == "chat"):
        _check_flag(name, value)
        if value and name in ("ignore_eos", "logprobs"):
            need(name, name, features)
    elif name in NUMBERS:
        check_number(name, value, features)
    elif name in OWN_NUMBERS:
        check_in_range(name, value, OWN_NUMBERS[name], features)
    elif name in ("stop", "stop_sequences"):
        check_stops(value, features)
    elif name == "stop_token_ids":
        check_token_ids(value, features, model)
    elif name == "logit_bias":
        check_bias(value, features, model)
    else:
        check_extra(name, value, model)


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise BadRequest(f"{name} is {show(value)}; it must be true or false", param=name)


def _check_together(route: Route, body: Body, able: Able) -> None:
    needed = REQUIRED.get(route.kind)
    if needed is not None and body.get(needed) is None:
        raise BadRequest(f"{needed} is missing", param=needed)
    context = able.model.context_tokens
    for name in LENGTHS:
        if (body.get(name) or 0) > context:
            raise BadRequest(
                f"{name} is {body[name]}; this model's context has {context} tokens",
                param=name,
                code="context_length_exceeded",
            )
    if body.get("max_tokens") == 0 and not (route.kind == "completion" and body.get("echo")):
        raise BadRequest("max_tokens is 0; that needs echo", param="max_tokens")
    if body.get("top_logprobs") and not body.get("logprobs"):
        raise BadRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    if body.get("stream_options") and not body.get("stream"):
        raise BadRequest("stream_options needs stream: true", param="stream_options")
    if (body.get("best_of") or 1) != (body.get("n") or 1) and body.get("best_of") is not None:
        raise BadRequest("best_of must be n; /infer has it", param="best_of", code="unsupported")
