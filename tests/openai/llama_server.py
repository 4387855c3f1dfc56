"""A server that speaks as llama.cpp's does; each test says what (test process)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gpupool.engines.base import ModelInfo
from gpupool.engines.llama_cpp_link import LlamaLink
from gpupool.engines.llama_cpp_openai import LlamaOpenAI, Model
from gpupool.engines.llama_cpp_slots import SlotTable
from tests.test_llama_cpp_segment import byte_level

Json = dict[str, Any]

MODEL = ModelInfo(name="/models/tiny.gguf", context_tokens=512, vocab_size=3, slots=2)
CHAT = "/v1/chat/completions"
HI: Json = {"messages": [{"role": "user", "content": "Hi"}]}
USAGE = {"prompt_tokens": 5, "completion_tokens": 2}
DONE = b"data: [DONE]\n\n"


def delta(text: str, reason: str | None = None) -> Json:
    return {"choices": [{"delta": {"content": text}, "finish_reason": reason}]}


EVENTS = [delta("a"), delta("b"), delta("", "stop"), {"choices": [], "usage": USAGE}]


def render(*events: Json) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


class LlamaServer:
    """`script` says what the next request is answered: pieces, each an HTTP chunk. None: nothing
    more until the client leaves; `breaks`: the connection ends there, before its end."""

    def __init__(self) -> None:
        self.script: list[bytes | None] = [render(*EVENTS), DONE]
        self.script_of: Callable[[Json], list[bytes | None]] | None = None
        """In place of `script`, where answers differ."""
        self.status = 200
        self.breaks = False
        self.asked: list[Json] = []
        self.most_running = 0
        self.num_running = 0
        self.num_left = 0
        self.paths: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        fields = {line.partition(":")[0].lower(): line for line in head.split("\r\n")}
        length = int(fields["content-length"].partition(":")[2])
        self.paths.append(head.split()[1])
        assert "Bearer secret" in fields["authorization"]
        asked = json.loads(await reader.readexactly(length))
        self.asked.append(asked)
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            await self._answer(asked, reader, writer)
        finally:
            self.num_running -= 1
            writer.close()

    async def _answer(
        self, asked: Json, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(b"HTTP/1.1 %d X\r\nTransfer-Encoding: chunked\r\n\r\n" % self.status)
        for piece in self.script_of(asked) if self.script_of else self.script:
            if piece is None:
                assert await reader.read() == b""
                self.num_left += 1
                return
            writer.write(b"%X\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(0)
        if not self.breaks:
            writer.write(b"0\r\n\r\n")
            await writer.drain()


class Client:
    """Asks the application; `left` is set when the client leaves."""

    def __init__(self, app: LlamaOpenAI) -> None:
        self._app = app
        self.left = asyncio.Event()
        self.status = 0
        self.body = b""
        self.on_body: Callable[[], object] = lambda: None

    async def ask(self, path: str = CHAT, **body: Any) -> Any:
        """The status and the parsed answer, or the bytes of a stream."""
        has_body = False

        async def receive() -> Any:
            nonlocal has_body
            if has_body:
                await self.left.wait()
                return {"type": "http.disconnect"}
            has_body = True
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            self.status = message.get("status", self.status)
            self.body += message.get("body", b"")
            if message["type"] == "http.response.body":
                self.on_body()

        asked = HI | body if path == CHAT else body
        await self._app({"path": path, "state": {"body": asked}}, receive, send)
        if self.body.startswith(b"data: "):
            return self.status, self.body
        return self.status, json.loads(self.body)


class Stage:
    """The application before a scripted server."""

    def __init__(self, server: LlamaServer, app: LlamaOpenAI) -> None:
        self.server, self.app = server, app
        self.num_inflight = self.num_steps = 0

    def client(self) -> Client:
        return Client(self.app)

    def count(self, change: int) -> None:
        self.num_inflight += change

    def note_progress(self) -> None:
        self.num_steps += 1


@asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[Stage]:
    server = LlamaServer()
    listening = await asyncio.start_unix_server(server.serve, str(folder / "s"))
    found: list[Stage] = []
    app = LlamaOpenAI(
        LlamaLink(str(folder / "s"), "secret"),
        SlotTable(MODEL.slots),
        Model(MODEL, "served", byte_level(b"a", b"b", b"c"), has_tools=True),
        count=lambda change: found[0].count(change),
        note_progress=lambda: found[0].note_progress(),
    )
    found.append(Stage(server, app))
    async with listening:
        yield found[0]
