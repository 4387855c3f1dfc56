"""Which names the bodies of the pool's own OpenAI application may have (pure).

What is here and the engine cannot do is refused where it is read, by the table of capabilities.
"""

from __future__ import annotations

from typing import Any

from gpupool.api.values import show
from gpupool.engines.base import Chats, Decodes, Embeds, Engine
from gpupool.errors import BadRequest
from gpupool.nearest import nearest_hint

NOTES = {"user", "metadata", "safety_identifier", "prompt_cache_key"}
"""What clients write for themselves or for whoever bills them; it changes no answer."""

SAMPLING = {
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "seed", "n", "best_of", "stop", "stop_token_ids", "ignore_eos",
    "skip_special_tokens", "logit_bias", "logprobs", "max_tokens", "min_tokens",
    "return_tokens_as_token_ids", "stream", "stream_options", "response_format",
    "structured_outputs",
}  # fmt: skip
TEMPLATE = {
    "messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs",
}  # fmt: skip

ONLY: dict[str, tuple[Any, ...]] = {
    "add_special_tokens": (True,),
    "audio": (),
    "function_call": (),
    "functions": (),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "modalities": (["text"],),
    "prediction": (),
    "prompt_logprobs": (),
    "reasoning_effort": (),
    "service_tier": ("auto", "default"),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
    "suffix": ("",),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "verbosity": (),
    "web_search_options": (),
}
"""Names that are taken with these values, or null, which mean nothing, and with no other."""


def fields_for(engine: Engine) -> dict[str, frozenset[str]]:
    """By the path of a route."""
    common = {"model", *NOTES}
    generation = common | SAMPLING | set(ONLY)
    tokens = {"model", "prompt", "add_special_tokens", "return_token_strs"}
    found = {"/v1/completions": generation | {"prompt", "echo"}}
    if isinstance(engine, Chats):
        chat = {"top_logprobs", "max_completion_tokens", "tool_choice", "parallel_tool_calls"}
        found["/v1/chat/completions"] = (generation | TEMPLATE | chat) - {"add_special_tokens"}
        tokens |= TEMPLATE
    if isinstance(engine, Embeds):
        found["/v1/embeddings"] = common | {"input", "encoding_format", "dimensions"}
    found["/tokenize"] = tokens
    if isinstance(engine, Decodes):
        found["/detokenize"] = {"model", "tokens"}
    return {path: frozenset(names) for path, names in found.items()}


def refuse_others(body: dict[str, Any], known: frozenset[str]) -> None:
    """400 for a name that this application does not know, or a value that it cannot honour."""
    for name, value in body.items():
        if value is None:
            continue
        if name not in known and value is not False:
            raise BadRequest(
                f"unknown field {show(name)}{nearest_hint(name, tuple(known))}",
                param=name[:60],
                code="unknown_parameter",
            )
        if name in ONLY and value not in ONLY[name]:
            raise BadRequest(
                f"{name} is {show(value)}; this pool's engine has only its default",
                param=name,
                code="unsupported",
            )
    options = body.get("stream_options") or {}
    for name in options:
        if name != "include_usage":
            raise BadRequest(
                f"stream_options has {show(name)}; it takes include_usage",
                param="stream_options",
                code="unsupported",
            )
