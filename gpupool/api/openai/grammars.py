"""Tools, JSON schemas, regular expressions and grammars in request bodies (pure).

Each is a program that the engine compiles for one client, on a core that all clients need.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from gpupool.api.values import show
from gpupool.errors import BadRequest

MAX_SCHEMA_BYTES = 16 << 10
MAX_SCHEMA_DEPTH = 32
MAX_REGEX_CHARS = 1 << 10
MAX_GRAMMAR_CHARS = 16 << 10
MAX_CHOICES = 1024
MAX_TOOLS = 128
MAX_REPEATS = 256
"""Of `?`, `*`, `+` and `{}` in a pattern or grammar. What llama.cpp and xgrammar need for a row of
them grows with the square of their number, or faster: some thousand take hours."""
REPEAT = re.compile(r"[?*+{]")
UNFINISHED = re.compile(r"(?<!\\)(\\\\)*\\$")
RANGE = re.compile(r"\{\s*(\d+)\s*,\s*(\d+)\s*\}")
LEASTS = ("minItems", "minProperties", "minLength")
MAX_LEAST = 4096
BOUNDS = (
    ("minLength", "maxLength"),
    ("minItems", "maxItems"),
    ("minProperties", "maxProperties"),
    ("minimum", "maximum"),
    ("exclusiveMinimum", "exclusiveMaximum"),
    ("minimum", "exclusiveMaximum"),
    ("exclusiveMinimum", "maximum"),
)
TOOL_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")

FORMATS = ("text", "json_object", "json_schema", "structural_tag")


def check_grammars(body: dict[str, Any]) -> None:
    """Everything by which a body restricts the text."""
    _check_response_format(body.get("response_format"), "response_format")
    text = body.get("text")
    output = body.get("output_config")  # as /v1/messages has it
    for holder in (text, output):
        if isinstance(holder, dict):
            _check_text_format(holder.get("format"))
    structured = body.get("structured_outputs")
    if structured is not None:
        if not isinstance(structured, dict):
            raise BadRequest(
                f"structured_outputs is {show(structured)}; send an object",
                param="structured_outputs",
            )
        _check_structured(structured)
    if body.get("grammar") is not None:
        _check_pattern("grammar", body["grammar"], MAX_GRAMMAR_CHARS)
    if body.get("json_schema") is not None:
        check_schema("json_schema", body["json_schema"])


def _check_response_format(given: Any, param: str) -> None:
    if given is None:
        return
    if not isinstance(given, dict) or given.get("type") not in FORMATS:
        raise BadRequest(
            f"{param} is {show(given)}; send an object whose type is one of {', '.join(FORMATS)}",
            param=param,
        )
    if given["type"] == "json_schema":
        inner = given.get("json_schema")
        if not isinstance(inner, dict) or not isinstance(inner.get("schema"), dict):
            raise BadRequest(
                f"{param}.json_schema must be an object with a name and a schema",
                param=f"{param}.json_schema",
            )
        check_schema(f"{param}.json_schema.schema", inner["schema"])
    elif "schema" in given:
        check_schema(f"{param}.schema", given["schema"])
    else:
        check_schema(param, given)  # a structural tag has schemas and patterns within


def _check_text_format(given: Any) -> None:
    """As /v1/responses and /v1/messages have it."""
    if isinstance(given, dict) and given.get("schema") is not None:
        check_schema("format.schema", given["schema"])


def _check_structured(given: dict[str, Any]) -> None:
    """As vLLM has it."""
    for name, value in given.items():
        param = f"structured_outputs.{name}"
        if value is None:
            continue
        if name == "json":
            check_schema(param, _parse(param, value) if isinstance(value, str) else value)
        elif name in ("regex", "whitespace_pattern"):
            _check_pattern(param, value, MAX_REGEX_CHARS)
            if UNFINISHED.search(value):
                raise BadRequest(f"{param} ends within an escape sequence", param=param)
        elif name == "grammar":
            _check_pattern(param, value, MAX_GRAMMAR_CHARS)
        elif name == "structural_tag":
            _check_text(param, value, MAX_GRAMMAR_CHARS)
            check_schema(param, _parse(param, value))
        elif name == "choice":
            _check_choices(param, value)


def _check_choices(param: str, value: Any) -> None:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_CHOICES:
        raise BadRequest(f"{param} must be a list of 1 to {MAX_CHOICES} strings", param=param)
    _check_size(param, value)


def _check_text(param: str, value: Any, max_chars: int) -> None:
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{param} is {show(value)}; it must be a string", param=param)
    if len(value) > max_chars:
        raise BadRequest(f"{param} has more than {max_chars} characters", param=param)


def _check_pattern(param: str, value: Any, max_chars: int) -> None:
    """A regular expression, or a grammar."""
    _check_text(param, value, max_chars)
    if len(REPEAT.findall(value)) > MAX_REPEATS:
        raise BadRequest(f"{param} repeats more than {MAX_REPEATS} times", param=param)
    for low, high in RANGE.findall(value):
        if len(low.lstrip("0")) > 9 or len(high.lstrip("0")) > 9 or int(low) > int(high):
            raise BadRequest(
                f"{param} has the range {show(f'{low},{high}')}, which cannot be", param=param
            )


def _parse(param: str, text: str) -> Any:
    if len(text) > MAX_SCHEMA_BYTES:
        raise _too_large(param)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadRequest(f"{param} is not JSON", param=param) from None


def check_schema(param: str, schema: Any) -> None:
    """A JSON schema of a size that compiles in a moment."""
    if not isinstance(schema, dict | bool):
        raise BadRequest(f"{param} is {show(schema)}; it must be an object", param=param)
    _check_size(param, schema)
    for depth, value in _walk(schema):
        if depth > MAX_SCHEMA_DEPTH:
            raise BadRequest(
                f"{param} is nested more than {MAX_SCHEMA_DEPTH} levels deep", param=param
            )
        if isinstance(value, dict):
            _check_inner(param, value)
            _check_reference(param, schema, value)


def _check_inner(param: str, schema: dict[str, Any]) -> None:
    """llama.cpp writes out "at least 5, up to 1" until the memory is gone, xgrammar "at least a
    billion items", and that in the worker itself: vLLM looks at a schema there."""
    for name in LEASTS:
        least = schema.get(name)
        if isinstance(least, int | float) and least > MAX_LEAST:
            raise BadRequest(f"{param} has {name} {show(least)}, above {MAX_LEAST}", param=param)
    if isinstance(schema.get("grammar"), str):
        _check_pattern(f"{param} grammar", schema["grammar"] or " ", MAX_GRAMMAR_CHARS)
    patterns = [schema.get("pattern"), *_keys_of(schema.get("patternProperties"))]
    for pattern in patterns:
        if isinstance(pattern, str):
            _check_pattern(f"{param} pattern", pattern or "^", MAX_REGEX_CHARS)
    for low, high in BOUNDS:
        least, most = schema.get(low), schema.get(high)
        if not (isinstance(least, int | float) and isinstance(most, int | float)):
            continue
        if least > most:
            raise BadRequest(f"{param} has {low} {least} above {high} {most}", param=param)


def _check_reference(param: str, schema: Any, inner: dict[str, Any]) -> None:
    """One that leads back to itself, and to nothing that could be written."""
    seen: list[str] = []
    while isinstance(inner, dict) and isinstance(pointer := inner.get("$ref"), str):
        if pointer in seen:
            raise BadRequest(f"{param} has a $ref without end: {show(pointer)}", param=param)
        seen.append(pointer)
        inner = schema
        for name in pointer.removeprefix("#").split("/")[1:]:
            inner = inner.get(name, {}) if isinstance(inner, dict) else {}


def _keys_of(value: Any) -> list[str]:
    return list(value) if isinstance(value, dict) else []


def _walk(value: Any, depth: int = 0) -> Iterator[tuple[int, Any]]:
    """Depth first; the body's own limit of depth bounds the recursion."""
    yield depth, value
    if isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _walk(child, depth + 1)


def _check_size(param: str, value: Any) -> None:
    if len(json.dumps(value)) > MAX_SCHEMA_BYTES:
        raise _too_large(param)


def _too_large(param: str) -> BadRequest:
    return BadRequest(f"{param} has more than {MAX_SCHEMA_BYTES} bytes", param=param)


def check_tools(body: dict[str, Any]) -> None:
    """Functions that the model may call, and which it must."""
    tools = body.get("tools")
    if tools is None:
        return
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        raise BadRequest(f"tools must be a list of at most {MAX_TOOLS}", param="tools")
    for index, tool in enumerate(tools):
        _check_tool(f"tools[{index}]", tool)


def _check_tool(param: str, tool: Any) -> None:
    if not isinstance(tool, dict):
        raise BadRequest(f"{param} is {show(tool)}; it must be an object", param=param)
    # The function is an object of its own in chats; responses and messages have it flat.
    function = tool.get("function", tool)
    if not isinstance(function, dict):
        raise BadRequest(f"{param}.function must be an object", param=param)
    name = function.get("name")
    if name is not None and not (isinstance(name, str) and TOOL_NAME.fullmatch(name)):
        raise BadRequest(
            f"{param} has the name {show(name)}; it takes letters, digits and _-.: (at most 128)",
            param=param,
        )
    for field in ("parameters", "input_schema"):
        if function.get(field) is not None:
            check_schema(f"{param}.{field}", function[field])
