"""OpenAI's answers out of what llama.cpp's handlers tell (pure; worker process).

llama.cpp always streams; here its events become the client's, or one answer. They are made anew:
several sequences make one answer, and what llama.cpp tells besides is nobody's business.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from gpupool.engines.llama_cpp_ask import Ask
from gpupool.engines.llama_cpp_calls import CallReader

Json = dict[str, Any]

PREFIXES = {"chat": "chatcmpl-", "completion": "cmpl-"}
OBJECTS = {"chat": "chat.completion", "completion": "text_completion"}
CHUNKS = {"chat": "chat.completion.chunk", "completion": "text_completion"}
TEXTS = ("content", "reasoning_content")


@dataclass(slots=True)
class Choice:
    """One sequence, as far as it was told."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    tool_calls: dict[int, Json] = field(default_factory=dict)
    logprobs: list[Json] = field(default_factory=list)
    finish_reason: str | None = None
    usage: Json | None = None
    has_role: bool = False
    offset: int = 0  # characters told with log-probabilities
    reader: CallReader = field(default_factory=CallReader)


class Reply:
    """The answer to one request, from the first event to the last."""

    def __init__(self, ask: Ask, model_name: str) -> None:
        self._ask = ask
        self._is_chat = ask.kind == "chat"
        self._choices = [Choice() for _ in ask.parts]
        self._head: Json = {
            "id": PREFIXES[ask.kind] + uuid.uuid4().hex,
            "object": (CHUNKS if ask.stream else OBJECTS)[ask.kind],
            "created": int(time.time()),
            "model": model_name,
            "system_fingerprint": None,
        }

    # Streams.

    def chunk(self, index: int, event: Json) -> Json | None:
        """What the client is told of one event of a sequence, if anything."""
        choice = self._choices[index]
        told = self._read(choice, event)
        if told is None:
            return None
        delta, logprobs, finish_reason = told
        if not delta and not logprobs and finish_reason is None:
            return None
        if self._is_chat:
            if not choice.has_role:
                choice.has_role = True
                delta = {
                    "role": "assistant",
                    "content": None if "tool_calls" in delta else "",
                } | delta
            content: Json = {"delta": delta}
        else:
            content = {"text": delta.get("text", "")}
        content["logprobs"] = self._render_logprobs(choice, logprobs)
        choices = [{"index": index, **content, "finish_reason": finish_reason}]
        return self._head | {"choices": choices}

    def usage_chunk(self) -> Json:
        """The last event."""
        return self._head | {"choices": [], "usage": self._usage()}

    # Answers of one piece.

    def take(self, index: int, event: Json) -> None:
        """Keep what an event tells."""
        choice = self._choices[index]
        told = self._read(choice, event)
        if told is None:
            return
        delta, logprobs, _ = told
        for name in (*TEXTS, "text"):
            if delta.get(name):
                choice.texts.setdefault(name, []).append(delta[name])
        for call in delta.get("tool_calls", ()):
            _merge_call(choice.tool_calls, call)
        choice.logprobs += logprobs

    def whole(self) -> Json:
        """Everything."""
        choices = []
        for index, choice in enumerate(self._choices):
            told: Json = {"index": index}
            if self._is_chat:
                told["message"] = _message(choice)
            else:
                told["text"] = "".join(choice.texts.get("text", ()))
            told["logprobs"] = self._render_logprobs(choice, choice.logprobs)
            choices.append(told | {"finish_reason": choice.finish_reason})
        return self._head | {"choices": choices, "usage": self._usage()}

    # Both.

    @property
    def is_complete(self) -> bool:
        """Whether every sequence has told how it ended."""
        return all(choice.finish_reason and choice.usage for choice in self._choices)

    def _read(self, choice: Choice, event: Json) -> tuple[Json, list[Json], str | None] | None:
        """Delta, log-probabilities and the reason of the end; None where there is no text."""
        self._head["system_fingerprint"] = event.get("system_fingerprint")
        if event.get("usage"):
            choice.usage = event["usage"]
        if "prompt_progress" in event or not event.get("choices"):
            return None
        told = event["choices"][0]
        reason = told.get("finish_reason")
        logprobs = (told.get("logprobs") or {}).get("content") or []
        if self._is_chat:
            # llama.cpp tells the role in an event of its own.
            delta = {name: value for name, value in told["delta"].items() if name != "role"}
            if delta.get("content", "") is None:
                del delta["content"]
            if self._ask.must_call:
                reason = "tool_calls" if reason == "stop" else reason
                call = choice.reader.read(delta.pop("content", ""))
                if call is not None:
                    delta["tool_calls"] = [call]
        else:
            delta = {"text": told["text"]} if told["text"] else {}
        choice.finish_reason = reason or choice.finish_reason
        return delta, logprobs, reason

    def _render_logprobs(self, choice: Choice, entries: list[Json]) -> Json | None:
        num_top = self._ask.num_top
        if num_top is None:
            return None
        for entry in entries:
            entry["top_logprobs"] = entry["top_logprobs"][:num_top]
            for one in (entry, *entry["top_logprobs"]):
                one.pop("id", None)
        if self._is_chat:
            return {"content": entries}
        offsets = []
        for entry in entries:
            offsets.append(choice.offset)
            choice.offset += len(entry["token"])
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [_table(entry) for entry in entries] if num_top else None,
            "text_offset": offsets,
        }

    def _usage(self) -> Json:
        """Each prompt counts once, however many sequences it has."""
        parts = zip(self._ask.parts, self._choices, strict=True)
        prompts = {part.prompt_index: choice.usage or {} for part, choice in parts}
        prompt = sum(usage.get("prompt_tokens", 0) for usage in prompts.values())
        cached = sum(
            (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
            for usage in prompts.values()
        )
        generated = sum(
            (choice.usage or {}).get("completion_tokens", 0) for choice in self._choices
        )
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


def _merge_call(calls: dict[int, Json], call: Json) -> None:
    """Add what is new of a tool call; its arguments come in pieces."""
    function = call.get("function") or {}
    known = calls.setdefault(
        call["index"], {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
    )
    known["id"] = call.get("id") or known["id"]
    known["function"]["name"] = function.get("name") or known["function"]["name"]
    known["function"]["arguments"] += function.get("arguments") or ""


def _message(choice: Choice) -> Json:
    text = "".join(choice.texts.get("content", ()))
    message: Json = {"role": "assistant", "content": text}
    if "reasoning_content" in choice.texts:
        message["reasoning_content"] = "".join(choice.texts["reasoning_content"])
    if choice.tool_calls:
        message["content"] = text or None
        message["tool_calls"] = [call for _, call in sorted(choice.tool_calls.items())]
    return message


def _table(entry: Json) -> dict[str, float]:
    """The alternatives of a token, and the token itself, as OpenAI's completions tell them."""
    best = {top["token"]: top["logprob"] for top in entry["top_logprobs"]}
    return best | {entry["token"]: entry["logprob"]}
