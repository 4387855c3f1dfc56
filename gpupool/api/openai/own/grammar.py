"""What a body says the text must be: response_format, structured_outputs (pure)."""

from __future__ import annotations

import json
from typing import Any

from gpupool.api.values import show
from gpupool.engines.base import Grammar
from gpupool.errors import BadRequest


def read_grammar(body: dict[str, Any]) -> tuple[str | None, Grammar | None]:
    """The field's name and its grammar, or neither. Sizes have been checked."""
    by_format = _of_format(body.get("response_format") or {})
    structured = body.get("structured_outputs") or {}
    given = {name: value for name, value in structured.items() if value not in (None, False)}
    if not given:
        return ("response_format", by_format) if by_format else (None, None)
    if by_format is not None:
        raise BadRequest(
            "response_format and structured_outputs are two formats; send one",
            param="response_format",
        )
    if len(given) > 1:
        raise BadRequest(
            f"structured_outputs has {' and '.join(sorted(given))}; send one of them",
            param="structured_outputs",
        )
    ((name, value),) = given.items()
    return f"structured_outputs.{name}", _of_structured(name, value)


def _of_format(given: dict[str, Any]) -> Grammar | None:
    kind = given.get("type", "text")
    if kind == "json_object":
        return Grammar("json_object")
    if kind == "json_schema":
        return Grammar("json_schema", json.dumps(given["json_schema"]["schema"]))
    if kind == "structural_tag":
        raise BadRequest(
            "response_format structural_tag: --infer_type vllm has it; send a json_schema",
            param="response_format",
            code="unsupported",
        )
    return None


def _of_structured(name: str, value: Any) -> Grammar:
    """As vLLM has it."""
    if name == "json":
        return Grammar("json_schema", value if isinstance(value, str) else json.dumps(value))
    if name == "json_object":
        return Grammar("json_object")
    if name == "regex":
        return Grammar("regex", value)
    if name == "grammar":
        return Grammar("ebnf", value)
    if name == "choice":
        return Grammar("ebnf", choice_grammar(value))
    raise BadRequest(
        f"structured_outputs has {show(name)}; this pool's engine takes json, json_object, regex, "
        "choice or grammar",
        param="structured_outputs",
        code="unsupported",
    )


def choice_grammar(choices: list[Any]) -> str:
    """A grammar of these texts."""
    for choice in choices:
        if not isinstance(choice, str) or not choice:
            raise BadRequest(
                f"structured_outputs.choice has {show(choice)}; it takes strings that are not "
                "empty",
                param="structured_outputs.choice",
            )
    return "root ::= " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
