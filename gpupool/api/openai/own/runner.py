"""What handlers ask of the engine, and its events on their event loop (worker process)."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Literal, TypeVar

from gpupool.engines.base import (
    Chunk,
    Decodes,
    Embeds,
    Engine,
    Event,
    Failed,
    LastEvent,
    SamplingParams,
    Sink,
)
from gpupool.errors import EngineDead, EngineError

log = logging.getLogger(__name__)

T = TypeVar("T")

NUM_THREADS = 4  # for tokenizers and templates, which take milliseconds, and seconds at worst


@dataclass(frozen=True, slots=True)
class Work:
    """One call of the engine."""

    kind: Literal["generate", "score", "embed"]
    prompt: Sequence[int]
    params: SamplingParams = SamplingParams()
    num_top: int = 0  # for score


class Bell:
    """Brings events from the engine's threads to the event loop: one wake-up for all that are
    there when it comes, of whatever request."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._arrived: deque[tuple[Running, int, Event]] = deque()
        self._is_due = False

    def ring(self, running: Running, index: int, event: Event) -> None:
        """Any thread; never raises."""
        self._arrived.append((running, index, event))
        if not self._is_due:
            self._is_due = True
            with suppress(RuntimeError):  # The loop is closed: nobody waits any more.
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        # First, so that what comes from now on rings again.
        self._is_due = False
        for _ in range(len(self._arrived)):
            running, index, event = self._arrived.popleft()
            running.take(index, event)


class Running:
    """The works of one request. At most as many as the engine's slots are inside it at once, so
    that a long list does not stand in front of everybody who comes later."""

    def __init__(self, engine: Engine, bell: Bell, works: Sequence[Work]) -> None:
        self._engine = engine
        self._bell = bell
        self._works = works
        self._id = uuid.uuid4().hex
        self._num_started = 0
        self._inside: set[int] = set()
        self._events: deque[tuple[int, Event]] = deque()
        self._came = asyncio.Event()

    def take(self, index: int, event: Event) -> None:
        """An event has come. On the event loop."""
        if not isinstance(event, Chunk):
            self._inside.discard(index)
        self._events.append((index, event))
        self._came.set()

    async def events(self) -> AsyncGenerator[tuple[int, Event], None]:
        """As they come; raises the first error. Whoever leaves early, by whatever way, leaves
        nothing in the engine."""
        num_left = len(self._works)
        try:
            self._start_some()
            while num_left:
                await self._came.wait()
                self._came.clear()
                while self._events:
                    index, event = self._events.popleft()
                    if isinstance(event, Failed):
                        raise event.error
                    if not isinstance(event, Chunk):
                        num_left -= 1
                    yield index, event
                self._start_some()
        finally:
            for index in self._inside:
                self._engine.cancel(self._request_id(index))

    def _start_some(self) -> None:
        slots = self._engine.model.slots
        while self._num_started < len(self._works) and len(self._inside) < slots:
            index = self._num_started
            self._num_started += 1
            self._inside.add(index)
            self._start(index, self._works[index])

    def _start(self, index: int, work: Work) -> None:
        request_id, engine = self._request_id(index), self._engine

        def sink(event: Event) -> None:
            self._bell.ring(self, index, event)

        try:
            _call(engine, request_id, work, sink)
        except Exception:
            log.exception("the engine refused to start request=%s", request_id)
            sink(Failed(EngineError("the engine could not start this request")))

    def _request_id(self, index: int) -> str:
        return f"{self._id}-{index}"


def _call(engine: Engine, request_id: str, work: Work, sink: Sink) -> None:
    if work.kind == "generate":
        engine.generate(request_id, work.prompt, work.params, sink)
    elif work.kind == "score":
        engine.score(request_id, work.prompt, sink, work.num_top)
    else:
        assert isinstance(engine, Embeds)
        engine.embed(request_id, work.prompt, sink)


class Runner:
    """One application's way to its engine. Used on one event loop."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.model = engine.model
        self.features = engine.capabilities
        self._bell: Bell | None = None
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="openai")
        self._saw_death = False

    @property
    def is_lost(self) -> bool:
        """Whether the engine is dead, as far as it says or its answers have shown."""
        return self._saw_death or self.engine.dead_reason is not None

    async def events(self, works: Sequence[Work]) -> AsyncGenerator[tuple[int, Event], None]:
        """See Running.events."""
        if self._bell is None:
            self._bell = Bell(asyncio.get_running_loop())
        try:
            async with aclosing(Running(self.engine, self._bell, works).events()) as events:
                async for event in events:
                    yield event
        except EngineDead:
            self._saw_death = True
            raise

    async def last_events(self, works: Sequence[Work]) -> list[LastEvent]:
        """What became of each work, in order; raises the first error."""
        found: dict[int, LastEvent] = {}
        async with aclosing(self.events(works)) as events:
            async for index, event in events:
                if not isinstance(event, Chunk):
                    found[index] = event
        return [found[index] for index in range(len(works))]

    async def off_loop(self, function: Callable[..., T], *args: object) -> T:
        """Run what may block on a thread."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
        except EngineDead:
            self._saw_death = True
            raise

    def token_bytes(self, token: int, text: str) -> bytes:
        """Of a token and what it is called."""
        engine = self.engine
        return engine.token_bytes(token) if isinstance(engine, Decodes) else text.encode()

    def close(self) -> None:
        """Start nothing any more; threads end when they are done."""
        self._threads.shutdown(wait=False, cancel_futures=True)
