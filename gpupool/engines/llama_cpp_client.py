"""HTTP to llama.cpp's own server on its private Unix socket (worker process)."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any

import httpx

from gpupool.engines.llama_cpp_link import LlamaLink
from gpupool.errors import EngineError, RequestError

log = logging.getLogger(__name__)

Json = dict[str, Any]

PAGE_TIMEOUT_S = 30.0
TOKENIZE_TIMEOUT_S = 60.0
COMPLETION = "/completion"


class LlamaClient:
    """One engine's connections. `stream`, `complete` and `get` belong to one event loop; the first
    two raise LinkBroken."""

    def __init__(self, socket_path: str, secret: str, link: LlamaLink) -> None:
        # httpx leaves a connection open for good where it is cancelled in the wrong moment, as
        # happens to generations; so what may be cancelled goes through the link.
        self._link = link
        # A new connection each: the server ends idle ones without notice, so that a request on
        # a kept one may be lost, and each kept one would hold one of its threads.
        once = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        base: Mapping[str, Any] = {
            "base_url": "http://llama.cpp",
            "headers": {"Authorization": f"Bearer {secret}"},
        }
        self._async = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=socket_path, limits=once),
            timeout=PAGE_TIMEOUT_S,
            **base,
        )
        self._sync = httpx.Client(
            transport=httpx.HTTPTransport(uds=socket_path, limits=once),
            timeout=TOKENIZE_TIMEOUT_S,
            **base,
        )

    async def get(self, path: str) -> httpx.Response:
        """A small page; any status."""
        return await self._async.get(path)

    async def complete(self, body: Json) -> Json:
        """One whole completion."""
        with _refusals():
            return await self._link.ask(COMPLETION, body)

    async def stream(self, body: Json) -> AsyncGenerator[Json]:
        """The events of a completion. Closing the iterator closes the connection, which stops
        the generation."""
        with _refusals():
            async with aclosing(self._link.events(COMPLETION, {**body, "stream": True})) as events:
                async for event in events:
                    yield event

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
    raise _refused(error)


@contextmanager
def _refusals() -> Iterator[None]:
    """What llama.cpp refuses here was checked by us, so it is nothing for the client to mend."""
    try:
        yield
    except RequestError as error:
        raise _refused(error) from error


def _refused(error: object) -> EngineError:
    log.error("llama.cpp refused a request error=%r", error)
    return EngineError("the engine refused this request; the server's log says why")
