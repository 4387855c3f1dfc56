"""The pool's own OpenAI application over a scripted engine, as a worker has it but for HTTP."""

from __future__ import annotations

import json
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from gpupool.front import Front
from gpupool.keys import KeyRing
from gpupool.partition import Slice
from gpupool.settings import Settings
from gpupool.totals import PoolTotals
from tests.engines.talker import Talker

TIMEOUT_S = 20


class Api:
    """One engine and its front."""

    def __init__(self, *engine_args: str, engine_class: type[Talker] = Talker) -> None:
        settings = Settings(model_name="m", engine_args=engine_args)
        self.engine = engine_class(settings, Slice(0, (), (0,)))
        self.engine.load(lambda phase, fraction: None)
        self.totals = PoolTotals(1)[0]
        self.front = Front(self.engine, settings, KeyRing(()), self.totals)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """On the front's event loop."""
        return self.front._spawn(work).result(TIMEOUT_S)

    def send(self, path: str, body: dict[str, Any]) -> httpx.Response:
        async def post() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.front.gate)
            async with httpx.AsyncClient(transport=transport, base_url="http://pool") as client:
                return await client.post(path, json=body)

        response: httpx.Response = self.run(post())
        return response

    def ask(self, path: str, **body: Any) -> Any:
        """The answer; fails unless it is a 200."""
        response = self.send(path, body)
        assert response.status_code == 200, response.text
        return response.json()

    def refused(self, path: str, **body: Any) -> dict[str, Any]:
        """The error of a 400."""
        response = self.send(path, body)
        assert response.status_code == 400, response.text
        error: dict[str, Any] = response.json()["error"]
        return error

    def stream(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The events of an answer that ends as it should."""
        *events, done = self.events(path, **body)
        assert done == "[DONE]"
        return [json.loads(event) for event in events]

    def events(self, path: str, **body: Any) -> list[str]:
        """What stands behind "data: "."""
        response = self.send(path, {**body, "stream": True})
        assert response.status_code == 200, response.text
        *events, rest = response.text.split("\n\n")
        assert rest == ""
        assert all(event.startswith("data: ") for event in events)
        return [event.removeprefix("data: ") for event in events]

    def close(self) -> None:
        self.front.close()
        self.engine.die()


@contextmanager
def serving(*engine_args: str, engine_class: type[Talker] = Talker) -> Iterator[Api]:
    api = Api(*engine_args, engine_class=engine_class)
    try:
        yield api
    finally:
        api.close()
