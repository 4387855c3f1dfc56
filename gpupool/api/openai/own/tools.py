"""Which tools a chat may or must call, and the grammar that makes it (pure)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from gpupool.api.values import show
from gpupool.engines.base import Grammar
from gpupool.errors import BadRequest

Tools = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """What a body's `tools` and `tool_choice` come to."""

    kind: Literal["none", "auto", "named", "required"]
    tools: Tools | None = None  # told to the model
    name: str = ""  # of the tool that is called, if it is named
    grammar: Grammar | None = None


def read_tool_choice(body: dict[str, Any], *, calls_tools: bool) -> ToolChoice:
    """`calls_tools`: whether the model writes calls of its own accord in a form that is known."""
    tools: Tools = body.get("tools") or []
    choice = body.get("tool_choice") or ("auto" if tools else "none")
    if choice == "none":
        return ToolChoice("none")
    functions = [_function_of(tool) for tool in tools]
    if not functions:
        raise BadRequest(f"tool_choice is {show(choice)}, but there are no tools", param="tools")
    if choice == "auto":
        if not calls_tools:
            raise BadRequest(
                "tool_choice auto: this model's chat template does not say how it calls tools; "
                'send tool_choice "required", or the name of a function',
                param="tool_choice",
                code="unsupported",
            )
        return ToolChoice("auto", tools)
    if choice == "required":
        schema = _schema_of_calls(functions, many=body.get("parallel_tool_calls") is not False)
        return ToolChoice("required", tools, grammar=Grammar("json_schema", json.dumps(schema)))
    name = _name_of(choice)
    for function in functions:
        if function["name"] == name:
            grammar = Grammar("json_schema", json.dumps(_parameters_of(function)))
            return ToolChoice("named", tools, name, grammar)
    raise BadRequest(
        f"tool_choice is {show(choice)}; the tools are "
        f"{', '.join(function['name'] for function in functions)[:200]}",
        param="tool_choice",
    )


def _function_of(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    if tool.get("type", "function") != "function" or not isinstance(function, dict):
        raise BadRequest(
            f"tools has {show(tool)}; this pool's engine takes functions", param="tools"
        )
    if not isinstance(function.get("name"), str):
        raise BadRequest("tools has a function without a name", param="tools")
    return function


def _name_of(choice: Any) -> str:
    if not isinstance(choice, dict) or not isinstance(choice.get("function"), dict):
        raise BadRequest(
            f'tool_choice is {show(choice)}; send "none", "auto", "required" or a function\'s name',
            param="tool_choice",
        )
    return str(choice["function"].get("name"))


def _parameters_of(function: dict[str, Any]) -> dict[str, Any]:
    given = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(given, dict) or not isinstance(given.get("$defs", {}), dict):
        raise BadRequest(
            f"the function {function['name']} has the parameters {show(given)}; send a JSON "
            "schema of an object",
            param="tools",
        )
    return given


def _schema_of_calls(functions: list[dict[str, Any]], *, many: bool) -> dict[str, Any]:
    """A list of calls. References in the functions' own schemas start at the root of the whole, so
    their definitions go there."""
    definitions: dict[str, Any] = {}
    calls = []
    for function in functions:
        parameters = dict(_parameters_of(function))
        for name, definition in parameters.pop("$defs", {}).items():
            if definitions.setdefault(name, definition) != definition:
                raise BadRequest(
                    f"two tools define {show(name)} in $defs, each another; rename one",
                    param="tools",
                )
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "enum": [function["name"]]},
                    "parameters": parameters,
                },
                "required": ["name", "parameters"],
            }
        )
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
    if not many:
        schema["maxItems"] = 1
    return schema | ({"$defs": definitions} if definitions else {})
