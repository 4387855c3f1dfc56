"""What `gpupool query` sends, and how it reads an answer."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from gpupool.errors import ConfigError
from gpupool.pools.asking import NotAnswered, Question, ask

DONE = "data: [DONE]\n\n"


class Server:
    """Answers each request with the next of the answers; what was asked is kept."""

    def __init__(self, *answers: tuple[int, str]) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.url.path, json.loads(request.content)))
        status, text = self._answers.pop(0)
        return httpx.Response(status, text=text)

    def ask(self, **question: Any) -> str:
        transport = httpx.MockTransport(self)
        with httpx.Client(transport=transport, base_url="http://x") as client:
            return "".join(ask(client, Question("M", "hello", **question)))


def chat(*pieces: str) -> str:
    events = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events)


def refused(message: str, param: str | None = None) -> str:
    return json.dumps({"error": {"message": message, "param": param}})


def test_a_chat_is_asked_and_printed_as_it_comes() -> None:
    server = Server((200, chat("a", "b") + 'data: {"choices": [], "usage": {}}\n\n' + DONE))
    assert server.ask(system="be short", options=(("max_tokens", 3),)) == "ab"
    [(path, body)] = server.asked
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "M",
        "stream": True,
        "max_tokens": 3,
        "messages": [
            {"role": "system", "content": "be short"},
            {"role": "user", "content": "hello"},
        ],
    }


def test_a_base_model_completes_the_text() -> None:
    plain = 'data: {"choices": [{"text": " world"}]}\n\n' + DONE
    server = Server((400, refused("this model has no chat template")), (200, plain))
    assert server.ask() == " world"
    assert server.asked[1] == ("/v1/completions", {"model": "M", "stream": True, "prompt": "hello"})


def test_a_base_model_is_not_told_anything_silently() -> None:
    server = Server((400, refused("this model has no chat template")))
    with pytest.raises(NotAnswered, match="--system means nothing to it"):
        server.ask(system="be short")


def test_a_text_can_be_completed_without_a_template() -> None:
    server = Server((200, 'data: {"choices": [{"text": "!"}]}\n\n' + DONE))
    assert server.ask(is_raw=True) == "!"
    assert server.asked[0][0] == "/v1/completions"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((404, refused("the model 'M' is not served here", "model")), "404: the model 'M'"),
        ((429, refused("full")), "429: full"),
        ((502, "<html>bad gateway</html>"), "502: <html>bad gateway</html>"),
        ((200, chat("a") + 'data: {"error": {"message": "it died"}}\n\n'), "it died"),
        ((200, chat("a")), "ended early"),
    ],
)
def test_what_is_no_whole_answer_is_an_error(answer: tuple[int, str], said: str) -> None:
    server = Server(answer)
    with pytest.raises(
        NotAnswered, match="^" + said.replace("(", r"\(") if said[0].isdigit() else said
    ):
        server.ask()
    assert len(server.asked) == 1


def test_nobody_there_says_what_to_do() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with (
        httpx.Client(transport=httpx.MockTransport(refuse), base_url="http://x") as client,
        pytest.raises(ConfigError, match="nobody answers at http://x"),
    ):
        list(ask(client, Question("M", "hello")))
