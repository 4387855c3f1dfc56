"""The host of a model, asked as often as it takes (worker process, the engine's loop)."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from gpupool.engines.saas_client import Client, Json, Reply, Stream
from gpupool.engines.saas_errors import (
    CALLERS_FAULT,
    HostBroken,
    HostFailure,
    HostRefused,
    HostSilent,
    error_of,
    is_full,
    limits_of,
    may_be_tried_again,
    retry_after_s,
)
from gpupool.engines.saas_key import Secrets

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 8.0
MAX_DOUBLINGS = 10
MAX_RETRY_AFTER_S = 60.0
"""Who has to wait longer is told so, and asks again himself."""
MAX_LOGGED_CHARS = 300


class Host:
    """Asks at most `max_parallel` at a time; all its errors are RequestErrors of ours."""

    def __init__(
        self, client: Client, secrets: Secrets, *, max_retries: int, max_parallel: int
    ) -> None:
        self._client = client
        self._secrets = secrets
        self._max_retries = max_retries
        self._free = asyncio.Semaphore(max_parallel)

    async def ask(self, path: str, body: Json, patience_s: float = 0.0) -> Reply:
        """A whole answer, tried again where that may help; its headers are those for the client.
        A host that is only full is asked for at least `patience_s`, however often that is."""
        async with self._free:
            until = time.monotonic() + patience_s
            for count in itertools.count():
                try:
                    reply = await self._client.ask(path, body)
                except (HostRefused, HostSilent, HostBroken) as failure:
                    await self._pause(failure, count, until)
                else:
                    return Reply(reply.content, limits_of(reply.headers, self._secrets))
        raise AssertionError("unreachable: only an answer or an error ends the tries")

    @asynccontextmanager
    async def stream(self, path: str, body: Json) -> AsyncIterator[Stream]:
        """An answer in pieces; nothing is tried again once there was one. Leaving it closes the
        connection."""
        async with self._free, AsyncExitStack() as stack:
            stream, first = await self._begin(path, body, stack)
            yield Stream(self._rest(first, stream.events), limits_of(stream.headers, self._secrets))

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _begin(
        self, path: str, body: Json, stack: AsyncExitStack
    ) -> tuple[Stream, Json | None]:
        """The stream and its first piece."""
        for count in itertools.count():
            trying = AsyncExitStack()
            try:
                stream: Stream = await trying.enter_async_context(self._client.stream(path, body))
                first = await anext(stream.events, None)
            except (HostRefused, HostSilent, HostBroken) as failure:
                await trying.aclose()
                await self._pause(failure, count)
            except BaseException:
                await trying.aclose()
                raise
            else:
                stack.push_async_exit(trying)
                return stream, first
        raise AssertionError("unreachable: only an answer or an error ends the tries")

    async def _rest(self, first: Json | None, events: AsyncGenerator[Json]) -> AsyncGenerator[Json]:
        try:
            if first is not None:
                yield first
            async for event in events:
                yield event
        except (HostRefused, HostSilent, HostBroken) as failure:
            self._note(failure, "amid its answer")
            raise error_of(failure, self._secrets) from None
        finally:
            await events.aclose()

    async def _pause(self, failure: HostFailure, count: int, until: float = 0.0) -> None:
        """Before the next try; raises the client's error if there is none."""
        told_s = retry_after_s(failure)
        pause_s = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** min(count, MAX_DOUBLINGS)) * random.uniform(
            0.5, 1.0
        )
        pause_s = max(pause_s, told_s or 0.0)
        is_last = count >= self._max_retries or pause_s > MAX_RETRY_AFTER_S
        if is_full(failure) and time.monotonic() + pause_s < until:
            is_last = False
        if is_last or not may_be_tried_again(failure):
            self._note(failure, f"at try {count + 1}")
            raise error_of(failure, self._secrets) from None
        log.info("the host is asked again in %.1f s: %s", pause_s, self._told(failure))
        await asyncio.sleep(pause_s)

    def _note(self, failure: HostFailure, when: str) -> None:
        """What is the client's own fault is for the client to know."""
        is_ours = not isinstance(failure, HostRefused) or failure.status not in CALLERS_FAULT
        if is_ours:
            log.error("the host failed %s: %s", when, self._told(failure))

    def _told(self, failure: HostFailure) -> str:
        if isinstance(failure, HostRefused):
            told = self._secrets.hide(str(failure.content))
            return f"status={failure.status} {told[:MAX_LOGGED_CHARS]!r}"
        return f"{type(failure).__name__} {self._secrets.hide(str(failure))}"
