"""A host that speaks OpenAI's API, asked over HTTP (worker process, the engine's loop).

Bodies and answers pass as they are: nothing of them has to be known here. litellm, which is for
the others, loses choices of streams with `n` and takes a stream that broke for a whole one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from gpupool.engines.saas_args import SaasArgs
from gpupool.engines.saas_body import ENCODING, lines_of, whole_of
from gpupool.engines.saas_errors import HostBroken, HostGarbled, HostRefused, HostSilent
from gpupool.engines.saas_key import silence_libraries
from gpupool.json_object import object_or_empty

Json = dict[str, Any]

CONNECT_TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 128 << 20
MAX_ERROR_BYTES = 65_536
ERROR_PATIENCE_S = 10.0
"""What is known without it is the status, which is enough."""
OK = 200
JSON_TYPE = "application/json"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that is whole."""

    content: Json
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer that comes in pieces; a failure ends them with one of saas_errors'."""

    events: AsyncGenerator[Json]
    headers: Mapping[str, str]


class Client(Protocol):
    """Asks one host, once; raises HostRefused, HostSilent or HostBroken. Paths are ours, such as
    /v1/chat/completions."""

    async def ask(self, path: str, body: Json) -> Reply:
        """A whole answer."""

    def stream(self, path: str, body: Json) -> Any:
        """An async context manager that gives a Stream; leaving it closes the connection, which is
        what stops the host."""

    async def aclose(self) -> None:
        """Close all connections."""


class DirectClient:
    """Of an address that speaks OpenAI's API."""

    def __init__(self, url: str, key: str | None, args: SaasArgs) -> None:
        self._url = url
        silence_libraries()
        self._timeout_s = args.timeout_s
        self._client = httpx.AsyncClient(
            headers=headers_of(key, args),
            timeout=httpx.Timeout(args.timeout_s, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=args.max_parallel),
        )

    async def ask(self, path: str, body: Json) -> Reply:
        """See Client.ask."""
        async with self._send(path, body) as response:
            with _named():
                async with asyncio.timeout(self._timeout_s):
                    content = await _content_of(response)
            return Reply(content, response.headers)

    @asynccontextmanager
    async def stream(self, path: str, body: Json) -> AsyncIterator[Stream]:
        """See Client.stream."""
        async with self._send(path, body) as response:
            if response.headers.get("content-type", "").lower().startswith(JSON_TYPE):
                with _named():
                    async with asyncio.timeout(self._timeout_s):
                        await _content_of(response)
                raise HostGarbled("an answer in one piece to who wants a stream")
            yield Stream(_events(response, self._timeout_s), response.headers)

    async def aclose(self) -> None:
        """See Client.aclose."""
        await self._client.aclose()

    @asynccontextmanager
    async def _send(self, path: str, body: Json) -> AsyncIterator[httpx.Response]:
        """A good answer that begins."""
        url = self._url + path.removeprefix("/v1")
        request = self._client.build_request("POST", url, json=body)
        with _named():
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.send(request, stream=True)
        try:
            if response.status_code != OK:
                raise await _refusal(response)
            yield response
        finally:
            await response.aclose()


@contextmanager
def _named() -> Iterator[None]:
    """What fails within is a failure of the host."""
    try:
        yield
    except (httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        raise HostBroken(repr(error)) from None
    except (TimeoutError, httpx.TimeoutException):
        raise HostSilent from None
    except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
        raise HostBroken(repr(error)) from None


def headers_of(key: str | None, args: SaasArgs) -> dict[str, str]:
    """What all requests to a host have."""
    headers = {str(name): str(value) for name, value in args.extra.get("extra_headers", {}).items()}
    if "organization" in args.extra:
        headers["OpenAI-Organization"] = str(args.extra["organization"])
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    return headers | ENCODING | {"User-Agent": "gpupool"}


async def _refusal(response: httpx.Response) -> HostRefused:
    """With what the host says, if it says that soon and in few words."""
    raw = b""
    with suppress(TimeoutError, httpx.HTTPError, httpx.StreamError, HostGarbled):
        async with asyncio.timeout(ERROR_PATIENCE_S):
            raw = await whole_of(response, MAX_ERROR_BYTES)
    return HostRefused(response.status_code, response.headers, object_or_empty(raw))


async def _content_of(response: httpx.Response) -> Json:
    content = object_or_empty(await whole_of(response, MAX_ANSWER_BYTES))
    if not content:
        raise HostGarbled("an answer that is no JSON object")
    if content.get("error") and not {"choices", "data"} & content.keys():
        raise HostRefused(_status_in(content), response.headers, content)
    return content


async def _events(response: httpx.Response, timeout_s: float) -> AsyncGenerator[Json]:
    """The pieces, until the host says that there are no more, or all choices have ended."""
    running: set[int] = set()
    has_begun = has_lines = False
    async for line in _timed_lines(response, timeout_s):
        has_lines |= line.strip()[:1] not in (b"", b":")
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        event = _read_event(data, response.headers)
        for index, has_ended in _choices_of(event):
            has_begun = True
            running.add(index)
            if has_ended:
                running.discard(index)
        yield event
    if has_lines and not has_begun:
        raise HostGarbled("a stream without events")
    if running or not has_begun:
        raise HostBroken("a stream that ended before its end")


async def _timed_lines(response: httpx.Response, timeout_s: float) -> AsyncGenerator[bytes]:
    """A line has so long to come whole: a host may send one byte after the other."""
    lines = lines_of(response)
    while True:
        with _named():
            async with asyncio.timeout(timeout_s):
                line = await anext(lines, None)
        if line is None:
            return
        yield line


def _read_event(data: bytes, headers: Mapping[str, str]) -> Json:
    event = object_or_empty(data)
    if event.get("error"):
        raise HostRefused(_status_in(event), headers, event)
    if not event:
        raise HostGarbled("an event that is no JSON object")
    return event


def _choices_of(event: Json) -> list[tuple[int, bool]]:
    """The number of each choice in an event, and whether it ends there."""
    choices = event.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise HostGarbled("an event whose choices are no list of objects")
    numbers = [choice.get("index", 0) for choice in choices]
    if not all(isinstance(number, int) for number in numbers):
        raise HostGarbled("an event with a choice whose index is no number")
    ends = [bool(choice.get("finish_reason")) for choice in choices]
    return list(zip(numbers, ends, strict=True))


def _status_in(event: Json) -> int:
    told = event["error"]
    code = told.get("code") if isinstance(told, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 500
