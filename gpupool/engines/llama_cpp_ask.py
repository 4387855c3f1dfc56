"""What llama.cpp's own handlers are asked for one request of a client (pure; worker process).

A body that the gate has checked becomes one body for each sequence. They are made anew, field by
field: what llama.cpp is not told it fills with its own defaults, which are not OpenAI's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gpupool.engines.base import ModelInfo, SamplingParams
from gpupool.engines.llama_cpp_calls import schema_of_calls
from gpupool.engines.llama_cpp_fields import CHAT, COMPLETIONS, LACKING_ON
from gpupool.engines.llama_cpp_grammar import restriction_of
from gpupool.engines.llama_cpp_segment import fold_seed, samplers
from gpupool.engines.llama_cpp_slots import Key
from gpupool.errors import BadRequest

Json = dict[str, Any]

GREEDY_BELOW = 1e-5  # a smaller temperature is greedy, as in /infer
DEFAULT_MAX_TOKENS = 16  # of completions, as OpenAI has it; a chat goes on to its end
REASONING_FORMATS = ("none", "auto", "deepseek", "deepseek-legacy")
TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
STREAM_OPTIONS = {"include_usage", "include_obfuscation"}


@dataclass(frozen=True, slots=True)
class Part:
    """One sequence: what llama.cpp is asked, and for which prompt of the request."""

    body: Json
    key: Key
    prompt_index: int


@dataclass(frozen=True, slots=True)
class Ask:
    """One request; its parts are in the order of the answer's choices."""

    path: str
    kind: Literal["chat", "completion"]
    parts: tuple[Part, ...]
    stream: bool
    must_call: bool
    """Whether every sequence is a call of a tool, as llama_cpp_calls has it."""
    num_top: int | None
    """How many alternatives each token is to be told with; None: no log-probabilities."""


def refuse_lacking(path: str, body: Mapping[str, Any]) -> None:
    """BadRequest for a field that asks for what llama.cpp's handlers do not do."""
    for name, neutral in LACKING_ON[path].items():
        if name in body and body[name] not in neutral:
            raise BadRequest(
                f"{name}: this pool's engine has no such thing on {path}; --infer_type vllm may "
                "have it",
                param=name,
                code="unsupported",
            )


def refuse_media(messages: Any, param: str) -> None:
    """BadRequest for pictures and sounds: llama.cpp is started for texts here."""
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in (None, *TEXT_PARTS):
                raise BadRequest(
                    f"{param} has a part of type {str(kind)[:60]!r}; this pool's engine reads "
                    "texts only",
                    param=param,
                    code="unsupported",
                )


def ask_chat(body: Json, model: ModelInfo, *, has_tools: bool) -> Ask:
    """Of /v1/chat/completions. `has_tools`: the chat template tells the model of tools."""
    refuse_lacking(CHAT, body)
    refuse_media(body["messages"], "messages")
    tools = choose_tools(body, has_tools=has_tools)
    common = ask_sequence(body, model, _first(body, "max_completion_tokens", "max_tokens"))
    num_top = int(body.get("top_logprobs") or 0) if body.get("logprobs") else None
    if num_top is not None:
        _refuse_logprobs_of_calls(tools)
        # 0 would be "no log-probabilities" to llama.cpp.
        common["n_probs"] = max(num_top, 1)
    must_call = tools.get("tool_choice") == "required"
    if must_call:
        if "json_schema" in common or "grammar" in common:
            raise BadRequest("a text that is a tool call cannot be restricted besides")
        tools["tool_choice"] = "none"
        common["json_schema"] = schema_of_calls(callable_tools(body, tools["tools"]))
    common |= tools | {"messages": body["messages"]} | _template(body)
    key = key_of_chat(common, body["messages"])
    parts = tuple(Part(common | seed, key, prompt_index=0) for seed in seeds_of(body))
    return Ask(CHAT, "chat", parts, bool(body.get("stream")), must_call, num_top)


def _refuse_logprobs_of_calls(tools: Json) -> None:
    if tools.get("tool_choice") not in (None, "none"):
        # llama.cpp parses calls out of the text, and most of their tokens are told with no delta.
        raise BadRequest(
            "logprobs: this pool's engine has them for texts, not for tool calls; send "
            "tool_choice: none, or use --infer_type vllm",
            param="logprobs",
            code="unsupported",
        )


def ask_completion(body: Json, model: ModelInfo, control: list[str]) -> Ask:
    """Of /v1/completions. `control`: the model's control tokens, which are kept on demand."""
    refuse_lacking(COMPLETIONS, body)
    common = ask_sequence(body, model, _first(body, "max_tokens") or DEFAULT_MAX_TOKENS)
    num_top = None if body.get("logprobs") is None else int(body["logprobs"])
    if num_top is not None:
        common["n_probs"] = max(num_top, 1)
    if body.get("skip_special_tokens") is False:
        common["preserved_tokens"] = control
    parts = tuple(
        Part(common | seed | {"prompt": prompt}, _key_of_prompt(prompt), prompt_index)
        for prompt_index, prompt in enumerate(_prompts(body))
        for seed in seeds_of(body)
    )
    return Ask(COMPLETIONS, "completion", parts, bool(body.get("stream")), False, num_top)


def ask_sequence(body: Json, model: ModelInfo, limit: int | None) -> Json:
    """What is asked alike on all routes: how to sample, what restricts the text, where it ends."""
    for name in body.get("stream_options") or ():
        if name not in STREAM_OPTIONS:
            raise BadRequest(
                f"stream_options.{name}: this pool's engine has no such thing",
                param=f"stream_options.{name}",
                code="unsupported",
            )
    asked: Json = {
        "stream": True,
        "stream_options": {"include_usage": True},
        # Each step through the prompt is told, too: it shows that the engine lives.
        "return_progress": True,
        **samplers(_params(body), model.context_tokens),
        **restriction_of(body),
    }
    if limit is not None:
        asked["n_predict"] = int(limit)
    for name in ("stop", "logit_bias", "ignore_eos"):
        if body.get(name):
            asked[name] = body[name]
    return asked


def _params(body: Json) -> SamplingParams:
    names = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty")
    given = {
        name: body[name] for name in (*names, "repetition_penalty") if body.get(name) is not None
    }
    if given.get("temperature", 1.0) < GREEDY_BELOW:
        given["temperature"] = 0
    return SamplingParams(**given)


def seeds_of(body: Json) -> list[Json]:
    """One for each of the n sequences of a prompt; as in vLLM, neighbours have the next seed."""
    seed, n = body.get("seed"), int(body.get("n") or 1)
    if seed is None:
        return [{}] * n
    seed = int(seed)
    if seed >= 1 << 63:
        seed -= 1 << 64
    return [{"seed": fold_seed(seed + place, 0)} for place in range(n)]


def choose_tools(body: Json, *, has_tools: bool) -> Json:
    """Tools, and whether one is to be called; `callable_tools` says which of them."""
    tools, choice = body.get("tools") or [], body.get("tool_choice")
    for index, tool in enumerate(tools):
        if tool.get("type") != "function" or not tool.get("function", tool).get("name"):
            raise BadRequest(
                f"tools[{index}] must be of type function and have a name", param=f"tools[{index}]"
            )
    if isinstance(choice, dict):
        callable_tools(body, tools)
        choice = "required"
    elif choice not in (None, "none", "auto", "required"):
        raise BadRequest(
            f"tool_choice is {str(choice)[:60]!r}; it must be none, auto, required or an object "
            "that names a function",
            param="tool_choice",
        )
    if not tools:
        if choice == "required":
            raise BadRequest("tool_choice is required, but there are no tools", param="tool_choice")
        return {}
    if not has_tools and choice != "none":
        raise BadRequest(
            "tools: this model's chat template has no place for tools; set another one with the "
            "engine argument --chat-template-file, or use another model",
            param="tools",
            code="unsupported",
        )
    asked: Json = {"tools": tools, "tool_choice": choice or "auto"}
    if body.get("parallel_tool_calls") is not None:
        asked["parallel_tool_calls"] = body["parallel_tool_calls"]
    return asked


def callable_tools(body: Json, tools: list[Json]) -> list[Json]:
    """Those of the tools that may be called: all, or the one that is named."""
    choice = body.get("tool_choice")
    if not isinstance(choice, dict):
        return tools
    function = choice.get("function")
    # Responses have it flat.
    name = (function if isinstance(function, dict) else choice).get("name")
    found = [tool for tool in tools if tool.get("function", tool).get("name") == name]
    if choice.get("type") != "function" or not found:
        raise BadRequest(
            "tool_choice must name a function that is among the tools", param="tool_choice"
        )
    return found


def _template(body: Json) -> Json:
    """What the chat template is told besides messages and tools."""
    names = ("reasoning_format", "add_generation_prompt", "continue_final_message")
    asked = {name: body[name] for name in names if body.get(name) is not None}
    if asked.get("reasoning_format", "auto") not in REASONING_FORMATS:
        raise BadRequest(
            f"reasoning_format must be one of {', '.join(REASONING_FORMATS)}",
            param="reasoning_format",
        )
    return asked | template_variables(body, body.get("reasoning_effort"))


def template_variables(body: Json, reasoning_effort: Any) -> Json:
    """Of the chat template's own."""
    variables = dict(object_in(body, "chat_template_kwargs"))
    if reasoning_effort is not None:
        variables.setdefault("reasoning_effort", reasoning_effort)
    return {"chat_template_kwargs": variables} if variables else {}


def object_in(body: Json, name: str) -> Json:
    """A field that is an object if it is there."""
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise BadRequest(f"{name} is {str(value)[:60]!r}; send an object", param=name)
    return value or {}


def _prompts(body: Json) -> list[str | list[int]]:
    prompt = body.get("prompt")
    if prompt is None:
        raise BadRequest("prompt is missing", param="prompt")
    is_one = isinstance(prompt, str) or (prompt and isinstance(prompt[0], int))
    prompts = [prompt] if is_one else list(prompt)
    if not prompts or not all(isinstance(one, str | list) for one in prompts):
        raise BadRequest("prompt must be a text, token ids or a list of these", param="prompt")
    return prompts


def _key_of_prompt(prompt: str | list[int]) -> Key:
    return prompt.encode() if isinstance(prompt, str) else tuple(prompt)


def key_of_chat(asked: Json, messages: list[Any]) -> bytes:
    """A chat goes on with all its messages so far and one more."""
    before = json.dumps([asked.get("tools"), asked.get("chat_template_kwargs")])
    return (before + json.dumps(messages).rstrip("]")).encode()


def _first(body: Json, *names: str) -> Any:
    return next((body[name] for name in names if body.get(name) is not None), None)
