"""/v1/responses by llama.cpp's own handler (pure; worker process).

llama.cpp turns such a request into a chat and tells it in the Responses API's events. What it
leaves out of them, the official clients' types require.
"""

from __future__ import annotations

from typing import Any

from gpupool.engines.base import ModelInfo
from gpupool.engines.llama_cpp_ask import (
    Part,
    ask_sequence,
    callable_tools,
    choose_tools,
    key_of_chat,
    object_in,
    refuse_lacking,
    refuse_media,
    seeds_of,
    template_variables,
)
from gpupool.engines.llama_cpp_fields import RESPONSES

Json = dict[str, Any]

ABOUT_CONTENT = ("response.content_part.", "response.output_text.", "response.reasoning_text.")


def ask_response(body: Json, model: ModelInfo, *, has_tools: bool) -> Part:
    """What llama.cpp is asked. Its own way to require a call is used here."""
    refuse_lacking(RESPONSES, body)
    refuse_media(body["input"], "input")
    asked = ask_sequence(_as_chat(body), model, body.get("max_output_tokens"))
    tools = choose_tools(body, has_tools=has_tools)
    if tools:
        tools["tools"] = callable_tools(body, tools["tools"])
    asked |= tools | {"input": body["input"]}
    if body.get("instructions") is not None:
        asked["instructions"] = body["instructions"]
    asked |= template_variables(body, object_in(body, "reasoning").get("effort"))
    (seed,) = seeds_of(body)
    return Part(asked | seed, key_of_chat(asked, [body.get("instructions"), body["input"]]), 0)


def _as_chat(body: Json) -> Json:
    """With text.format as a chat has it."""
    given = object_in(object_in(body, "text"), "format")
    if given.get("type") != "json_schema":
        return body | {"response_format": given or None}
    inner = {"schema": object_in(given, "schema")}
    return body | {"response_format": {"type": "json_schema", "json_schema": inner}}


class ResponsesReply:
    """The answer to one request, from the first event to the last."""

    def __init__(self, body: Json, model: ModelInfo, model_name: str) -> None:
        self._limit = body.get("max_output_tokens")
        self._context_tokens = model.context_tokens
        self._num_events = 0
        self._places: dict[str, int] = {}  # of the items in the output, by their ids
        self._common: Json = {
            "model": model_name,
            "error": None,
            "incomplete_details": None,
            "instructions": body.get("instructions"),
            "max_output_tokens": self._limit,
            "metadata": body.get("metadata") or {},
            "output": [],
            "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
            "temperature": 1.0 if body.get("temperature") is None else body["temperature"],
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": body.get("tools") or [],
            "top_p": 1.0 if body.get("top_p") is None else body["top_p"],
        }
        self._was_begun = False
        self.response: Json | None = None
        """The whole answer, once there is one."""

    def take(self, event: Json) -> Json | None:
        """What the client is told of an event, if anything."""
        kind = event["type"]
        event.pop("timings", None)
        event.pop("prompt_progress", None)
        if kind == "response.in_progress":
            # llama.cpp says it again for every step through the prompt.
            if self._was_begun:
                return None
            self._was_begun = True
        if "response" in event:
            event["response"] = self._common | event["response"] | {"model": self._common["model"]}
        if kind == "response.completed":
            self._finish(event)
        self._place(event, kind)
        event["sequence_number"] = self._num_events
        self._num_events += 1
        return event

    def _place(self, event: Json, kind: str) -> None:
        item = event.get("item_id") or (event.get("item") or {}).get("id")
        if item is not None:
            event["output_index"] = self._places.setdefault(item, len(self._places))
        if kind.startswith(ABOUT_CONTENT):
            event["content_index"] = 0

    def _finish(self, event: Json) -> None:
        self.response = response = event["response"]
        usage = response["usage"]
        usage.setdefault("output_tokens_details", {"reasoning_tokens": 0})
        is_cut = self._limit is not None and usage["output_tokens"] >= self._limit
        if is_cut or usage["total_tokens"] >= self._context_tokens:
            event["type"] = "response.incomplete"
            response["status"] = "incomplete"
            response["incomplete_details"] = {"reason": "max_output_tokens"}
