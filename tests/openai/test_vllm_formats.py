"""By what a body restricts the text that vLLM writes, and what is said where that fails."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gpupool.engines.vllm_openai import FAILED_GENERATION, restricting_field, telling_bad_formats
from gpupool.errors import BadRequest
from gpupool.exchange import Message, Receive, Send

FIELDS = ("structured_outputs", "response_format", "text", "output_config")
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
    "a number each": (dict.fromkeys(FIELDS, -1), None),
    "a list each": (dict.fromkeys(FIELDS, ["a"]), None),
    "a format of a text": ({"output_config": {"format": "json"}, "text": {"format": 5}}, None),
    "tools": (TOOLS, None),
    "tools it may call": (TOOLS | {"tool_choice": "auto"}, None),
    "tools it must call": (TOOLS | {"tool_choice": "required"}, "tools"),
    "a tool it must call": (TOOLS | {"tool_choice": {"type": "function"}}, "tools"),
}


@pytest.mark.parametrize(("body", "field"), BODIES.values(), ids=BODIES.keys())
def test_the_field_that_restricts_the_text(body: dict[str, Any], field: str | None) -> None:
    assert restricting_field(body) == field


RESTRICTED = {"structured_outputs": {"regex": "a"}}
DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


def answer(body: dict[str, Any], status: int, message: str) -> tuple[int, Any]:
    """What comes of vLLM's answer to a body."""
    sent: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        half = json.dumps({"error": {"message": message, "code": status}}).encode()
        await send({"type": "http.response.body", "body": half[:9], "more_body": True})
        await send({"type": "http.response.body", "body": half[9:], "more_body": False})

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"state": {"body": body}}
    try:
        asyncio.run(telling_bad_formats(app)(scope, receive, send))
    except BadRequest as error:
        assert not sent
        return error.status, {"code": error.code, "param": error.param}
    content = b"".join(message.get("body", b"") for message in sent)
    assert not sent[-1]["more_body"]
    return sent[0]["status"], json.loads(content)["error"]


def test_a_format_that_vllm_cannot_follow_is_the_callers_fault() -> None:
    status, error = answer(RESTRICTED, 500, FAILED_GENERATION)
    assert status == 400
    assert (error["code"], error["param"]) == ("invalid_grammar", "structured_outputs")


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [({}, 500, FAILED_GENERATION), (RESTRICTED, 500, DEAD), (RESTRICTED, 404, FAILED_GENERATION)],
    ids=["no format", "a dead engine", "another error"],
)
def test_any_other_failure_is_told_as_it_is(
    body: dict[str, Any], status: int, message: str
) -> None:
    assert answer(body, status, message) == (status, {"message": message, "code": status})
