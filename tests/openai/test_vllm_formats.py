"""By what a body restricts the text that vLLM writes."""

from __future__ import annotations

from typing import Any

import pytest

from gpupool.engines.vllm_openai import restricting_field

TOOLS: dict[str, Any] = {"tools": [{"type": "function", "function": {"name": "f"}}]}
BODIES: dict[str, tuple[dict[str, Any], str | None]] = {
    "nothing": ({"messages": []}, None),
    "null": ({"response_format": None, "structured_outputs": None, "text": None}, None),
    "a regex": ({"structured_outputs": {"regex": "a+"}}, "structured_outputs"),
    "a schema": ({"response_format": {"type": "json_schema"}}, "response_format"),
    "text": ({"response_format": {"type": "text"}}, None),
    "a response's schema": ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
    "a response's text": ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, None),
    "a message's schema": (
        {"output_config": {"format": {"type": "json_schema"}}},
        "output_config.format",
    ),
    "tools": (TOOLS, None),
    "tools it may call": (TOOLS | {"tool_choice": "auto"}, None),
    "tools it must call": (TOOLS | {"tool_choice": "required"}, "tools"),
    "a tool it must call": (TOOLS | {"tool_choice": {"type": "function"}}, "tools"),
}


@pytest.mark.parametrize(("body", "field"), BODIES.values(), ids=BODIES.keys())
def test_the_field_that_restricts_the_text(body: dict[str, Any], field: str | None) -> None:
    assert restricting_field(body) == field
