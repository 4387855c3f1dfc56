"""Asks a model one thing, as it streams (`query`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from gpupool.errors import ConfigError, GpupoolError

TIMEOUT = httpx.Timeout(600.0, connect=5.0)
CHAT = "/v1/chat/completions"
PLAIN = "/v1/completions"


class NotAnswered(GpupoolError):
    """The server said why not, or ended early."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and how."""

    model: str
    text: str
    system: str = ""
    options: tuple[tuple[str, Any], ...] = ()  # max_tokens and the like
    is_raw: bool = False  # without the model's chat template


def ask(client: httpx.Client, question: Question) -> Iterator[str]:
    """The answer piece by piece: of a chat, or of a completion if the model knows no chats."""
    if not question.is_raw:
        try:
            yield from _stream(client, CHAT, _chat(question))
        except _KnowsNoChats:
            if question.system:
                raise NotAnswered(
                    f"model {question.model!r} has no chat template, so --system means nothing to "
                    "it; leave that out"
                ) from None
        else:
            return
    yield from _stream(client, PLAIN, _body(question) | {"prompt": question.text})


class _KnowsNoChats(Exception):
    """A base model."""


def _chat(question: Question) -> dict[str, Any]:
    messages = [{"role": "system", "content": question.system}] if question.system else []
    messages.append({"role": "user", "content": question.text})
    return _body(question) | {"messages": messages}


def _body(question: Question) -> dict[str, Any]:
    return {"model": question.model, "stream": True} | dict(question.options)


def _stream(client: httpx.Client, path: str, body: dict[str, Any]) -> Iterator[str]:
    try:
        with client.stream("POST", path, json=body) as response:
            if response.status_code != httpx.codes.OK:
                response.read()
                _refuse(path, response)
            is_done = False
            for line in response.iter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or is_done:
                    continue
                if is_done := data == "[DONE]":
                    continue
                yield _piece(json.loads(data))
            if not is_done:
                raise NotAnswered("the answer ended early; gpupool logs may say why")
    except httpx.ConnectError:
        raise ConfigError(
            f"nobody answers at {client.base_url}; start a pool with gpupool run, or give another "
            "address with --url"
        ) from None
    except (httpx.HTTPError, ValueError) as error:
        raise NotAnswered(f"the answer broke off: {error or type(error).__name__}") from None


def _refuse(path: str, response: httpx.Response) -> None:
    message = _message(response)
    has_no_chats = "chat template" in message or response.status_code == httpx.codes.NOT_FOUND
    if path == CHAT and has_no_chats and "model" not in _param(response):
        raise _KnowsNoChats
    raise NotAnswered(f"{response.status_code}: {message}")


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(response.text[:300].split()) or response.reason_phrase


def _param(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["param"])
    except (ValueError, KeyError, TypeError):
        return ""


def _piece(event: dict[str, Any]) -> str:
    if error := event.get("error"):
        raise NotAnswered(str(error.get("message", error)))
    choices = event.get("choices") or [{}]
    delta = choices[0].get("delta", choices[0])
    return str(delta.get("content") or delta.get("reasoning_content") or delta.get("text") or "")
