"""The scripted engine with an OpenAI application of its own: /v1/completions, a token an event.

Dies like DiesOnDemand, and refuses prompts that begin with a question mark. What the
event loop still runs is told by the metric scripted_openai_tasks, and what the garbage collector
leaves alone by scripted_frozen_objects.
"""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any

from gpupool.engines.base import Chunk, Event, Failed, OpenAI, Report, SamplingParams
from gpupool.errors import EngineDead
from gpupool.exchange import Message, Receive, Send
from tests.engines.dies_on_demand import DiesOnDemand

FIELDS = frozenset({"model", "prompt", "max_tokens", "n", "stream", "stream_options"})


class SpeaksOpenAI(DiesOnDemand):
    def load(self, report: Report) -> None:
        super().load(report)
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._count = 0
        threading.Thread(target=self._loop.run_forever, name="openai", daemon=True).start()

    def openai(self) -> OpenAI:
        return OpenAI(self._answer, {"/v1/completions": FIELDS})

    def is_lost(self) -> bool:
        return self._dead is not None

    def spawn(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        if self._dead is not None:
            work.close()
            raise EngineDead(self._dead)
        return asyncio.run_coroutine_threadsafe(self._track(work), self._loop)

    async def _track(self, work: Coroutine[Any, Any, Any]) -> Any:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await work
        finally:
            self._tasks.discard(task)

    def metrics_text(self) -> str:
        return (
            "# TYPE scripted_openai_tasks gauge\n"
            f"scripted_openai_tasks {len(asyncio.all_tasks(self._loop))}\n"
            "# TYPE scripted_frozen_objects gauge\n"
            f"scripted_frozen_objects {gc.get_freeze_count()}\n"
        )

    def die(self) -> None:
        super().die()
        for task in list(self._tasks):
            self._loop.call_soon_threadsafe(task.cancel)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        body = json.loads((await receive())["body"])
        if body["prompt"].startswith("?"):
            content = json.dumps({"error": {"message": "a question", "code": 400}}).encode()
            await self._start(send, b"application/json", 400)
            await send({"type": "http.response.body", "body": content, "more_body": False})
            return
        events = asyncio.Queue[Event]()
        self._count += 1
        request_id = f"openai-{self._count}"
        loop = asyncio.get_running_loop()
        self.generate(
            request_id,
            self.tokenize(body["prompt"]),
            SamplingParams(max_tokens=body.get("max_tokens", 16)),
            lambda event: loop.call_soon_threadsafe(events.put_nowait, event) and None,
        )
        try:
            await self._write(body, events, send)
        finally:
            self.cancel(request_id)

    async def _write(self, body: dict[str, Any], events: asyncio.Queue[Event], send: Send) -> None:
        text = ""
        is_stream = bool(body.get("stream"))
        while isinstance(event := await events.get(), Chunk | Failed):
            if isinstance(event, Failed):
                raise event.error
            text += event.text
            if is_stream:
                await self._event(send, {"choices": [{"index": 0, "text": event.text}]}, text)
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(text)}
        if is_stream:
            await self._event(send, {"choices": [], "usage": usage}, text)
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
            return
        choices = [{"index": 0, "text": text, "finish_reason": "length"}]
        await self._start(send, b"application/json")
        content = json.dumps({"id": "x", "choices": choices, "usage": usage}).encode()
        await send({"type": "http.response.body", "body": content, "more_body": False})

    async def _event(self, send: Send, content: dict[str, Any], text: str) -> None:
        if len(text) == 1 and content["choices"]:
            await self._start(send, b"text/event-stream")
        data = b"data: " + json.dumps(content).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _start(self, send: Send, kind: bytes, status: int = 200) -> None:
        headers = [(b"content-type", kind)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
