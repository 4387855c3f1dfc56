"""What restricts the text of a request, in the two ways llama.cpp knows (pure; worker process)."""

from __future__ import annotations

import json
from typing import Any

from gpupool.errors import BadRequest

Json = dict[str, Any]

ANY_OBJECT = {"type": "object"}
ESCAPED = str.maketrans(
    {'"': '\\"', "\\": "\\\\", **{chr(code): f"\\x{code:02x}" for code in range(32)}}
)


def restriction_of(body: Json) -> Json:
    """{}, or one of llama.cpp's fields json_schema and grammar. BadRequest for two at once."""
    found = [
        restriction
        for restriction in (
            _of_response_format(body.get("response_format")),
            _of_structured_outputs(body.get("structured_outputs")),
            {name: body[name] for name in ("json_schema", "grammar") if body.get(name) is not None},
        )
        if restriction
    ]
    if len(found) > 1 or any(len(restriction) > 1 for restriction in found):
        raise BadRequest(
            "the body restricts the text more than once; send one of response_format, "
            "structured_outputs, json_schema and grammar"
        )
    return found[0] if found else {}


def _of_response_format(given: Json | None) -> Json:
    kind = (given or {}).get("type", "text")
    if given is None or kind == "text":
        return {}
    if kind == "json_object":
        return {"json_schema": given.get("schema", ANY_OBJECT)}
    if kind == "json_schema":
        return {"json_schema": given["json_schema"]["schema"]}
    raise _unsupported(f"response_format of type {kind}", "response_format")


def _of_structured_outputs(given: Json | None) -> Json:
    """vLLM's field."""
    asked = {name: value for name, value in (given or {}).items() if value not in (None, False)}
    if not asked:
        return {}
    if len(asked) > 1:
        raise BadRequest(
            f"structured_outputs has {', '.join(asked)}; send one of them",
            param="structured_outputs",
        )
    ((name, value),) = asked.items()
    if name == "json":
        return {"json_schema": json.loads(value) if isinstance(value, str) else value}
    if name == "json_object":
        return {"json_schema": ANY_OBJECT}
    if name == "grammar":
        return {"grammar": value}
    if name == "choice":
        return {"grammar": grammar_of_choices(value)}
    raise _unsupported(f"structured_outputs.{name}", f"structured_outputs.{name}")


def grammar_of_choices(choices: list[Any]) -> str:
    """GBNF for one of some texts."""
    for choice in choices:
        if not isinstance(choice, str) or not choice:
            raise BadRequest(
                f"structured_outputs.choice has {str(choice)[:60]!r}; it takes texts",
                param="structured_outputs.choice",
            )
    return "root ::= " + " | ".join(f'"{choice.translate(ESCAPED)}"' for choice in choices)


def _unsupported(what: str, param: str) -> BadRequest:
    return BadRequest(
        f"this pool's engine has no {what}; --infer_type vllm has it",
        param=param,
        code="unsupported",
    )
