"""Tool calls that a model must make, as JSON that it is bound to write (pure; worker process).

llama.cpp's own way lets a model talk for as long as it likes before the call that is required of
it, and knows no choice of a named function. So these calls are texts of a schema. Calls that a
model may make are llama.cpp's own affair, in the format that the model was taught.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]

HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*')
ANY_OBJECT = {"type": "object"}


def schema_of_calls(tools: Sequence[Json]) -> Json:
    """A call of one of the tools. The name comes first, as properties are in order."""
    calls = {}
    for place, tool in enumerate(tools):
        function = tool.get("function", tool)
        where = f"#/$defs/call{place}/properties/arguments"
        arguments = _moved(function.get("parameters") or ANY_OBJECT, where)
        calls[f"call{place}"] = {
            "type": "object",
            "properties": {"name": {"const": function["name"]}, "arguments": arguments},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
    return {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in calls], "$defs": calls}


def _moved(schema: Any, where: str) -> Any:
    """A schema as a part of another: its references begin there."""
    if isinstance(schema, list):
        return [_moved(item, where) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: where + value[1:]
        if name == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved(value, where)
        for name, value in schema.items()
    }


class CallReader:
    """Turns the text of such a call, as it comes, into deltas of a tool call."""

    def __init__(self) -> None:
        self._pending = ""
        self._has_head = False

    def read(self, text: str) -> Json | None:
        """The next delta, if there is one."""
        self._pending += text
        if self._has_head:
            arguments = self._release()
            return {"index": 0, "function": {"arguments": arguments}} if arguments else None
        head = HEAD.match(self._pending)
        if head is None:
            return None
        self._has_head = True
        self._pending = self._pending[head.end() :]
        function = {"name": json.loads(head[1]), "arguments": self._release()}
        call_id = f"call_{uuid.uuid4().hex[:24]}"
        return {"index": 0, "id": call_id, "type": "function", "function": function}

    def _release(self) -> str:
        """All but what may be the brace that closes the call itself."""
        cut = self._pending.rfind("}")
        if cut < 0 or self._pending[cut + 1 :].strip():
            cut = len(self._pending)
        released, self._pending = self._pending[:cut], self._pending[cut:]
        return released
