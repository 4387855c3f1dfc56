"""HTTP to llama.cpp's own server on its private Unix socket (worker process)."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx

from gpupool.errors import EngineError

log = logging.getLogger(__name__)

Json = dict[str, Any]

CONNECT_TIMEOUT_S = 30.0
TOKENIZE_TIMEOUT_S = 60.0


class LlamaClient:
    """One engine's connections. `stream`, `complete` and `get` belong to one event loop."""

    def __init__(self, socket_path: str, secret: str) -> None:
        # A new connection each: the server ends idle ones without notice, so that a request on
        # a kept one may be lost, and each kept one would hold one of its threads.
        once = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        base: Mapping[str, Any] = {
            "base_url": "http://llama.cpp",
            "headers": {"Authorization": f"Bearer {secret}"},
        }
        # A step may take as long as it likes: whoever watches last_progress decides.
        patient = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
        self._async = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=socket_path, limits=once),
            timeout=patient,
            **base,
        )
        self._sync = httpx.Client(
            transport=httpx.HTTPTransport(uds=socket_path, limits=once),
            timeout=TOKENIZE_TIMEOUT_S,
            **base,
        )

    async def get(self, path: str) -> httpx.Response:
        """A small page; any status."""
        return await self._async.get(path, timeout=CONNECT_TIMEOUT_S)

    async def complete(self, body: Json) -> Json:
        """One whole completion."""
        return _read(await self._async.post("/completion", json=body))

    async def stream(self, body: Json) -> AsyncGenerator[Json]:
        """The events of a completion. Closing the iterator closes the connection, which stops
        the generation."""
        asked = {**body, "stream": True}
        async with self._async.stream("POST", "/completion", json=asked) as response:
            if response.status_code != httpx.codes.OK:
                await response.aread()
                _read(response)
            async for line in response.aiter_lines():
                kind, _, data = line.partition(": ")
                if kind == "data" and data != "[DONE]":
                    yield _without_error(json.loads(data))
                elif kind == "error":
                    _without_error({"error": json.loads(data)})

    def tokenize(self, text: str) -> list[int]:
        """Token ids; special tokens in the text are recognised. Any thread."""
        body = {"content": text, "add_special": True, "parse_special": True}
        tokens: list[int] = _read(self._sync.post("/tokenize", json=body))["tokens"]
        return tokens

    async def aclose(self) -> None:
        """Close all connections."""
        self._sync.close()
        await self._async.aclose()


def _read(response: httpx.Response) -> Json:
    try:
        answer: Json = response.json()
    except ValueError:
        raise EngineError(f"llama.cpp answered {response.status_code} without JSON") from None
    return _without_error(answer)


def _without_error(answer: Json) -> Json:
    error = answer.get("error")
    if error is None:
        return answer
    log.error("llama.cpp refused a request error=%r", error)
    raise EngineError("the engine refused this request; the server's log says why")
