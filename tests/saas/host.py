"""A hosted model as its worst: an HTTP server that answers as OpenAI's, or as it is told.

What a request gets is planned by `plan`, one entry a request; without a plan it is answered well.
Runs on threads of the test's own process.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-hosted-0123456789abcdef"
MODEL = "far-away"
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


@dataclass(frozen=True)
class Planned:
    """What one request gets in place of a good answer."""

    status: int = 200
    body: Any = None
    """Sent as it is if it is bytes, else as JSON; None: a good answer."""
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    num_events: int | None = None
    """Of a stream, before its connection ends."""
    is_cut: bool = True
    """Whether the connection of such a stream ends amid a chunk, and not as at its end."""


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    path: str
    body: dict[str, Any]
    key: str
    at: float
    headers: Mapping[str, str]


class Host:
    """From `with` to its end. `token_s` is the time between the events of a stream."""

    def __init__(self, token_s: float = 0.0, num_tokens: int = 3) -> None:
        self.token_s = token_s
        self.num_tokens = num_tokens
        self.word = "w"
        """How each token begins, in a stream; its number follows."""
        self.asked: list[Asked] = []
        self.num_left = 0
        """Requests whose client left before the answer was whole."""
        self.num_open = 0
        self.models_status = 200
        self.key = KEY
        self._plans: deque[Planned] = deque()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.host = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Host:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def plan(self, *planned: Planned) -> None:
        """For the next requests but those for the list of models."""
        self._plans.extend(planned)

    def forget_plans(self) -> None:
        """Answer well again."""
        self._plans.clear()

    def next_plan(self) -> Planned:
        return self._plans.popleft() if self._plans else Planned()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    host: Host


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._note({})
        if self.path != "/v1/models":
            self._send(404, {"error": {"message": "no such path"}})
        elif self._key() != self.server.host.key:
            self._send(401, {"error": {"message": f"bad key {self._key()}", "code": "invalid"}})
        else:
            status = self.server.host.models_status
            self._send(status, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._note(body)
        planned = self.server.host.next_plan()
        self.server.host.num_open += 1
        try:
            self._answer(body, planned)
        except OSError:
            self.server.host.num_left += 1
            self.close_connection = True
        finally:
            self.server.host.num_open -= 1

    def _key(self) -> str:
        return (self.headers["Authorization"] or "").removeprefix("Bearer ")

    def _note(self, body: dict[str, Any]) -> None:
        self.server.host.asked.append(
            Asked(self.path, body, self._key(), time.monotonic(), self.headers)
        )

    def _answer(self, body: dict[str, Any], planned: Planned) -> None:
        self._wait(planned.delay_s)
        if self._key() != self.server.host.key:
            self._send(401, {"error": {"message": f"bad key {self._key()}", "code": "invalid"}})
        elif planned.body is not None or planned.status != 200:
            self._send(planned.status, planned.body or {}, planned.headers)
        elif body.get("stream"):
            self._stream(body, planned)
        else:
            self._send(
                200, answer_to(self.path, body, self.server.host.num_tokens), planned.headers
            )

    def _wait(self, delay_s: float) -> None:
        """OSError as soon as the client closes its end."""
        until = time.monotonic() + delay_s
        self.connection.settimeout(0.01)
        try:
            while time.monotonic() < until:
                try:
                    if self.connection.recv(1) == b"":
                        raise ConnectionResetError
                except TimeoutError:
                    continue
        finally:
            self.connection.settimeout(None)

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _stream(self, body: dict[str, Any], planned: Planned) -> None:
        self.send_response(200)
        for name, value in planned.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for index, event in enumerate(events_of(self.path, body, self.server.host)):
            if index == planned.num_events:
                self.wfile.write(b"ffff\r\ndata: {" if planned.is_cut else b"0\r\n\r\n")
                self.wfile.flush()
                self.close_connection = True
                return
            self._wait(self.server.host.token_s)
            raw = f"data: {json.dumps(event, ensure_ascii=False)}\r\n\r\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(raw), raw))
        self.wfile.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


def answer_to(path: str, body: dict[str, Any], num_tokens: int) -> dict[str, Any]:
    """What a good host answers: each choice is the words `w0 w1 w2`."""
    common = {"id": "id-1", "created": 1, "model": body["model"]}
    if path.endswith("/embeddings"):
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        data = [
            {"object": "embedding", "index": index, "embedding": [0.6, 0.8]}
            for index, _ in enumerate(texts)
        ]
        usage = {"prompt_tokens": 7, "total_tokens": 7}
        return {"object": "list", "data": data, "model": body["model"], "usage": usage}
    words = [f"w{index} " for index in range(num_tokens)]
    choices = [_choice(path, body, index, words) for index in range(body.get("n") or 1)]
    kind = "chat.completion" if "/chat/" in path else "text_completion"
    return common | {"object": kind, "choices": choices, "usage": USAGE}


def _choice(path: str, body: dict[str, Any], index: int, words: list[str]) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": index, "finish_reason": "stop"}
    if "/chat/" not in path:
        return choice | {"text": "".join(words), "logprobs": None}
    message: dict[str, Any] = {"role": "assistant", "content": "".join(words)}
    if body.get("tools"):
        function = {"name": body["tools"][0]["function"]["name"], "arguments": '{"a": 1}'}
        calls = [{"id": "call-1", "type": "function", "function": function}]
        message |= {"content": None, "tool_calls": calls}
        choice["finish_reason"] = "tool_calls"
    logprobs = None
    if body.get("logprobs"):
        logprobs = {"content": [_logprob(word, body) for word in words]}
    return choice | {"message": message, "logprobs": logprobs}


def _logprob(word: str, body: dict[str, Any]) -> dict[str, Any]:
    own = {"token": word, "logprob": -0.5, "bytes": list(word.encode())}
    top = [own] * int(body.get("top_logprobs") or 0)
    return own | {"top_logprobs": top}


def events_of(path: str, body: dict[str, Any], host: Host) -> Iterator[dict[str, Any]]:
    """The same as a stream, word by word."""
    is_chat = "/chat/" in path
    kind = "chat.completion.chunk" if is_chat else "text_completion"
    common = {"id": "id-1", "created": 1, "model": body["model"], "object": kind}
    for number in range(host.num_tokens):
        for index in range(body.get("n") or 1):
            word = f"{host.word}{number} "
            part: dict[str, Any] = {"text": word}
            if is_chat:
                part = {"delta": ({"role": "assistant"} if number == 0 else {}) | {"content": word}}
                if body.get("logprobs"):
                    part["logprobs"] = {"content": [_logprob(word, body)]}
            yield common | {"choices": [{"index": index, "finish_reason": None, **part}]}
    for index in range(body.get("n") or 1):
        part = {"delta": {}} if is_chat else {"text": ""}
        yield common | {"choices": [{"index": index, "finish_reason": "stop", **part}]}
    if (body.get("stream_options") or {}).get("include_usage"):
        yield common | {"choices": [], "usage": USAGE}
