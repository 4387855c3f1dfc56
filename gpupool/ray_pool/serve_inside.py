"""What is different in Serve's own part of a replica (replica process).

None of it has a setting, and all of it is private to Ray: tests/ray_pool asks the pinned version
for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from ipaddress import ip_address
from typing import Any

LOOK_AGAIN_S = 0.1

_leaving: dict[str, Callable[[], object]] = {}
"""How a request that runs in this replica gives its slot back early, by Serve's id of it."""


def bind_to_loopback(node: str) -> None:
    """Serve opens a port in each replica, on all interfaces and after this, that only other
    deployments ask. Of a Ray that nobody reaches from outside it is not to be the one exception."""
    import ray.serve._private.replica as serves

    if ip_address(node).is_loopback:
        add = serves.add_port_to_grpc_server
        serves.add_port_to_grpc_server = lambda server, _: add(server, "127.0.0.1:0")


def let_past_slots(methods: Collection[str]) -> None:
    """Whatever is called in a replica waits for one of its `max_ongoing_requests`, also what
    Serve's router sends past its queue. These methods do not."""
    from ray.serve._private.replica import Replica

    start = Replica._start_request

    @contextlib.asynccontextmanager
    async def start_request(replica: Any, metadata: Any) -> AsyncIterator[None]:
        if metadata.call_method in methods:
            yield
            return
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(start(replica, metadata))
            loop, name = asyncio.get_running_loop(), metadata.internal_request_id
            _leaving[name] = lambda: asyncio.run_coroutine_threadsafe(stack.aclose(), loop)
            try:
                yield
            finally:
                del _leaving[name]

    Replica._start_request = start_request


def end_after_batches() -> None:
    """A replica that Serve ends because there is little to do ends when none of its slots is taken.
    A batch that it coordinates has given its slot back."""
    from ray.serve._private.replica import Replica

    drain = Replica._drain_ongoing_requests

    async def drain_all(replica: Any, *args: Any, **more: Any) -> None:
        await drain(replica, *args, **more)
        while _leaving:
            await asyncio.sleep(LOOK_AGAIN_S)

    Replica._drain_ongoing_requests = drain_all


def accept_while(is_able: Callable[[], bool]) -> None:
    """A replica whose engine has just died has the fewest requests of all, so that Serve would
    send it the next ones, and again what it could not run. It refuses them, as a full one does."""
    from ray.serve._private.replica import Replica

    can_accept = Replica._can_accept_request

    def can_accept_request(replica: Any, metadata: Any) -> bool:
        return is_able() and bool(can_accept(replica, metadata))

    Replica._can_accept_request = can_accept_request


class Slot:
    """The one that Serve counts for the request that this task answers; made in that task, after
    `let_past_slots`. A Call's slots."""

    def __init__(self) -> None:
        from ray.serve.context import _get_serve_request_context

        self._name = _get_serve_request_context()._internal_request_id

    def take(self, count: int = 1) -> None:
        """Serve knows of requests, not of sequences."""

    def give_back(self, count: int = 1) -> None:
        """The request goes on without it; any thread."""
        if count and (leave := _leaving.get(self._name)) is not None:
            leave()
