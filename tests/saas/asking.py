"""An engine's way to a host that is played by tests/saas/host.py, without an engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from gpupool.engines.saas_args import parse_engine_args
from gpupool.engines.saas_client import DirectClient
from gpupool.engines.saas_host import Host as Asker
from gpupool.engines.saas_key import secrets_of
from tests.saas.host import KEY, MODEL, Host

T = TypeVar("T")

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}


def asking(host: Host, work: Callable[[Asker], Awaitable[T]], *words: str, key: str = KEY) -> T:
    """What the work gives, with a host that is asked for it."""

    async def run() -> T:
        args = parse_engine_args(["--saas.base_url", host.url, *words])
        asker = Asker(
            DirectClient(host.url, key, args),
            secrets_of(key),
            max_retries=args.max_retries,
            max_parallel=args.max_parallel,
        )
        try:
            return await work(asker)
        finally:
            await asker.aclose()

    return asyncio.run(run())


async def events(asker: Asker, **more: Any) -> AsyncGenerator[dict[str, Any]]:
    async with (
        asker.stream(CHAT, BODY | {"stream": True} | more) as stream,
        aclosing(stream.events) as found,
    ):
        async for event in found:
            yield event
