"""A chat's text as it comes, read as text and calls of tools (pure)."""

from __future__ import annotations

import json
import uuid
from typing import Any, Protocol

from openai.types.chat.chat_completion_chunk import (
    ChoiceDelta,
    ChoiceDeltaToolCall,
    ChoiceDeltaToolCallFunction,
)

from gpupool.api.openai.own.tools import ToolChoice

BEGIN, END = "<tool_call>", "</tool_call>"
DECODER = json.JSONDecoder()


class Reader(Protocol):
    """Of one choice."""

    num_calls: int

    def push(self, text: str) -> list[ChoiceDelta]:
        """What new text adds to the message."""

    def finish(self) -> list[ChoiceDelta]:
        """What is left at the end of the text."""


def reader_for(choice: ToolChoice) -> Reader:
    """A new one."""
    if choice.kind == "named":
        return NamedReader(choice.name)
    if choice.kind == "required":
        return ListReader()
    return TaggedReader() if choice.kind == "auto" else TextReader()


class TextReader:
    """There are no tools."""

    num_calls = 0

    def push(self, text: str) -> list[ChoiceDelta]:
        """See Reader.push."""
        return [ChoiceDelta(content=text)] if text else []

    def finish(self) -> list[ChoiceDelta]:
        """See Reader.finish."""
        return []


class NamedReader:
    """All of the text is the arguments of one function."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.num_calls = 0

    def push(self, text: str) -> list[ChoiceDelta]:
        """See Reader.push."""
        if self.num_calls == 0:
            self.num_calls = 1
            return [_call(0, self._name, text)]
        if not text:
            return []
        more = ChoiceDeltaToolCall(index=0, function=ChoiceDeltaToolCallFunction(arguments=text))
        return [ChoiceDelta(tool_calls=[more])]

    def finish(self) -> list[ChoiceDelta]:
        """See Reader.finish."""
        return [] if self.num_calls else self.push("")


class ListReader:
    """The text is a list of objects with `name` and `parameters`. A call that the text's length
    has cut off is none."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._rest = ""

    def push(self, text: str) -> list[ChoiceDelta]:
        """See Reader.push."""
        self._rest += text
        found: list[ChoiceDelta] = []
        while "}" in text:
            start = len(self._rest) - len(self._rest.lstrip("[, \n\r\t"))
            try:
                call, end = DECODER.raw_decode(self._rest, start)
            except ValueError:
                break  # More of it is still to come.
            if not isinstance(call, dict):
                break
            self._rest = self._rest[end:]
            found.append(_call(self.num_calls, call["name"], _dumped(call["parameters"])))
            self.num_calls += 1
        return found

    def finish(self) -> list[ChoiceDelta]:
        """See Reader.finish."""
        return []


class TaggedReader:
    """Calls stand between tags, as Hermes' models and their successors write them."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._rest = ""

    def push(self, text: str) -> list[ChoiceDelta]:
        """See Reader.push."""
        self._rest += text
        found: list[ChoiceDelta] = []
        while True:
            before, tag, after = self._rest.partition(BEGIN)
            if not tag:
                # What may become a tag waits for the next piece.
                keep = _overlap(before, BEGIN)
                self._rest = before[len(before) - keep :]
                return found + self._text(before[: len(before) - keep])
            found += self._text(before)
            inner, end, rest = after.partition(END)
            if not end:
                self._rest = tag + after
                return found
            self._rest = rest
            found += self._read(inner) or self._text(tag + inner + end)

    def finish(self) -> list[ChoiceDelta]:
        """See Reader.finish. A last call may have lost its end tag."""
        rest, self._rest = self._rest, ""
        inner = rest.removeprefix(BEGIN)
        return (self._read(inner) if inner != rest else []) or self._text(rest)

    def _read(self, inner: str) -> list[ChoiceDelta]:
        try:
            call: Any = json.loads(inner)
        except (ValueError, RecursionError):
            return []
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return []
        self.num_calls += 1
        return [_call(self.num_calls - 1, call["name"], _dumped(call.get("arguments", {})))]

    def _text(self, text: str) -> list[ChoiceDelta]:
        """Blanks between calls are no text."""
        return [] if self.num_calls and not text.strip() else TextReader().push(text)


def _overlap(text: str, tag: str) -> int:
    """How many of the last characters begin a tag."""
    lengths = range(min(len(text), len(tag) - 1), 0, -1)
    return next((length for length in lengths if tag.startswith(text[-length:])), 0)


def _dumped(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _call(index: int, name: str, arguments: str) -> ChoiceDelta:
    function = ChoiceDeltaToolCallFunction(name=name, arguments=arguments)
    call_id = f"call_{uuid.uuid4().hex[:24]}"
    call = ChoiceDeltaToolCall(index=index, id=call_id, type="function", function=function)
    return ChoiceDelta(tool_calls=[call])
