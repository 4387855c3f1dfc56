"""Messages and tools as a model's chat template reads them (pure)."""

from __future__ import annotations

import json
from typing import Any

from gpupool.api.values import show
from gpupool.errors import BadRequest


def plain_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Contents as texts, arguments of calls as objects: what templates take."""
    return [_plain(f"messages[{index}]", message) for index, message in enumerate(messages)]


def _plain(param: str, message: dict[str, Any]) -> dict[str, Any]:
    plain = {**message, "content": _text_of(param, message.get("content"))}
    if message["role"] == "developer":
        plain["role"] = "system"
    calls = message.get("tool_calls")
    if calls is not None:
        if not isinstance(calls, list):
            raise BadRequest(f"{param}.tool_calls must be a list", param=param)
        plain["tool_calls"] = [_plain_call(param, call) for call in calls]
    return plain


def _text_of(param: str, content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    return "\n".join(_text_of_part(param, part) for part in parts)


def _text_of_part(param: str, part: Any) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, dict) else None
    if not isinstance(text, str) or part.get("type", "text") not in ("text", "input_text"):
        kind = part.get("type") if isinstance(part, dict) else part
        raise BadRequest(
            f"{param} has a part of type {show(kind)}; this pool's engine reads text only",
            param=param,
            code="unsupported",
        )
    return text


def _plain_call(param: str, call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRequest(f"{param}.tool_calls has {show(call)}; send functions", param=param)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise BadRequest(
                f"{param}.tool_calls has arguments that are not JSON", param=param
            ) from None
    return {**call, "type": "function", "function": {**function, "arguments": arguments or {}}}


def template_options(body: dict[str, Any]) -> dict[str, Any]:
    """The template's variables, and what becomes of the conversation's end."""
    given = body.get("chat_template_kwargs") or {}
    if not isinstance(given, dict):
        raise BadRequest(
            f"chat_template_kwargs is {show(given)}; send an object", param="chat_template_kwargs"
        )
    goes_on = body.get("continue_final_message") or False
    prompts = body.get("add_generation_prompt")
    prompts = not goes_on if prompts is None else prompts
    if not isinstance(goes_on, bool) or (goes_on and prompts):
        raise BadRequest(
            "continue_final_message and add_generation_prompt exclude each other",
            param="continue_final_message",
        )
    return {**given, "add_generation_prompt": prompts, "continue_final_message": goes_on}
