"""Requests to a gate, without a server (test process)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from gpupool.api.openai.checks import Able
from gpupool.api.openai.gate import Gate
from gpupool.api.openai.inner import Behind
from gpupool.call import Call, answering
from gpupool.capabilities import FEATURES
from gpupool.engines.base import ModelInfo
from gpupool.exchange import App, Message, Receive, Send
from gpupool.keys import KeyRing
from gpupool.totals import PoolTotals, Totals

MODEL = ModelInfo(name="tiny", context_tokens=100, vocab_size=1000, slots=4)
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
WHOLE = {"id": "x", "choices": [{"index": 0}], "usage": USAGE}
FIELDS = {
    CHAT: frozenset(
        [
            "model",
            "messages",
            "stream",
            "stream_options",
            "n",
            "seed",
            "stop",
            "temperature",
            "top_p",
            "max_tokens",
            "max_completion_tokens",
            "logprobs",
            "top_logprobs",
            "tools",
            "tool_choice",
            "response_format",
            "logit_bias",
            "structured_outputs",
            "chat_template_kwargs",
            "documents",
            "vllm_xargs",
            "bad_words",
            "allowed_token_ids",
            "user",
        ]
    ),
    COMPLETIONS: frozenset(
        [
            "model",
            "prompt",
            "stream",
            "stream_options",
            "n",
            "seed",
            "stop",
            "temperature",
            "max_tokens",
            "echo",
            "logprobs",
            "logit_bias",
            "user",
        ]
    ),
    "/v1/embeddings": frozenset({"model", "input"}),
}
ABLE = Able(frozenset(FEATURES), FIELDS, MODEL, ("tiny", "small"))


@dataclass
class Answer:
    """What a client got."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)
    is_complete: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        return error


@dataclass
class Script:
    """An application that keeps what it was asked, and answers what it was told to."""

    status: int = 200
    content: Any = None
    events: Sequence[bytes] = ()
    raises: BaseException | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    scopes: list[Message] = field(default_factory=list)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        self.asked.append(json.loads((await receive())["body"]))
        kind = b"text/event-stream" if self.events else b"application/json"
        headers = [(b"content-type", kind)]
        if self.events or self.raises is None:
            await send({"type": "http.response.start", "status": self.status, "headers": headers})
        for event in self.events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        if self.raises is not None:
            raise self.raises
        body = b"" if self.events else json.dumps(self.content).encode()
        await send({"type": "http.response.body", "body": body, "more_body": False})


def gate_around(
    app: App,
    *,
    able: Able = ABLE,
    keys: Iterable[str] = (),
    totals: Totals | None = None,
    is_dead: Callable[[], bool] = lambda: False,
    max_body_bytes: int = 100_000,
    cors_origins: Sequence[str] = (),
) -> Gate:
    behind = Behind(lambda path, body: app, able, is_dead)
    totals = totals or PoolTotals(1)[0]
    return Gate(
        behind,
        KeyRing(keys),
        totals,
        max_body_bytes=max_body_bytes,
        cors_origins=cors_origins,
    )


def ask(
    gate: Gate,
    path: str,
    body: Any = None,
    *,
    method: str = "POST",
    raw: bytes | None = None,
    headers: dict[str, str] | None = None,
    call: Call | None = None,
) -> Answer:
    """One request, to its end."""
    content = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
    given = {"content-type": "application/json"} | (headers or {})
    scope: Message = {
        "type": "http",
        "method": method,
        "path": unquote(path),
        "raw_path": path.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }
    answer = Answer()

    async def receive() -> Message:
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {
                name.decode(): value.decode() for name, value in message.get("headers", ())
            }
        else:
            answer.parts.append(message.get("body", b""))
            answer.is_complete = not message.get("more_body", False)

    with answering(call or Call()):
        asyncio.run(gate(scope, receive, send))
    return answer
