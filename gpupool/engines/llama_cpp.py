"""Engine on llama.cpp: its own server in a child process, driven over a private Unix socket.

Lives in the worker process; llama.cpp and its GPU memory live in the child. Imports no engine
library.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any, ClassVar, TypeVar

import httpx

from gpupool.capabilities import ENGINES
from gpupool.engines.base import (
    Event,
    Failed,
    Finished,
    ModelInfo,
    Report,
    SamplingParams,
    Scored,
    Sink,
)
from gpupool.engines.gguf_file import GgufModel, find_gguf, read_gguf
from gpupool.engines.llama_cpp_arguments import parse_engine_args
from gpupool.engines.llama_cpp_child import LlamaChild
from gpupool.engines.llama_cpp_client import LlamaClient
from gpupool.engines.llama_cpp_defaults import make_params
from gpupool.engines.llama_cpp_generation import Generation
from gpupool.engines.llama_cpp_scoring import Scorer
from gpupool.engines.llama_cpp_slots import Slot, SlotTable
from gpupool.engines.llama_cpp_vocabulary import Vocabulary
from gpupool.engines.outlet import Outlet
from gpupool.errors import Cancelled, ConfigError, EngineDead, EngineError, RequestError
from gpupool.partition import Slice
from gpupool.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[Slot], Awaitable[Finished | Scored]]

POLL_S = 0.1
WARM_UP_TIMEOUT_S = 600.0
EXIT_NOTICE_S = 2.0  # between a broken connection and the news that the process is gone
STOP_TIMEOUT_S = 2.0


class LlamaCppEngine:
    """One GGUF model in llama.cpp, on the slice's GPUs or on the CPU; see engines.base.Engine."""

    capabilities: ClassVar[frozenset[str]] = ENGINES["llama_cpp"]
    default_params: ClassVar[Mapping[str, float]] = {}
    model: ModelInfo

    def __init__(self, settings: Settings, gpu_slice: Slice) -> None:
        self._settings = settings
        self._slice = gpu_slice
        self._args = parse_engine_args(settings.engine_args)
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._dead_reason: str | None = None
        self._progress = time.monotonic()
        self._tasks: dict[str, asyncio.Task[Finished | Scored]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._child: LlamaChild | None = None
        self._client: LlamaClient
        self._slots: SlotTable
        self._scorer: Scorer
        self._vocabulary: Vocabulary

    @staticmethod
    def check(settings: Settings, gpus_per_worker: int) -> None:
        """See Engine.check. Any number of GPUs will do: the layers are split over them."""
        if importlib.util.find_spec("xllamacpp") is None:
            raise ConfigError(
                "--infer_type llama_cpp needs xllamacpp, which is not installed; "
                "pip install 'gpupool[llama-cpp]'"
            )
        parse_engine_args(settings.engine_args)
        read_gguf(find_gguf(settings.model_name))

    # Loading.

    def load(self, report: Report) -> None:
        """See Engine.load."""
        try:
            self._load(report)
        except BaseException:
            self.die()
            raise

    def _load(self, report: Report) -> None:
        report("reading the file's header", None)
        model = read_gguf(find_gguf(self._settings.model_name))
        params = make_params(self._args, model, self._slice)
        report("starting llama.cpp", None)
        child = self._start_loop(model)
        self._client = LlamaClient(child.socket_path, child.secret)
        # On the loop's thread, as the kernel ends the child together with the thread.
        self._on_loop(_later(child.start, params, len(self._slice.gpus)))
        self._vocabulary = Vocabulary(model)
        self._wait_until_loaded(child, report)
        self._scorer = Scorer(self._client, self._vocabulary, self._note_progress)
        self._on_loop(self._read_props())
        report("warming up", None)
        self._warm_up()

    def _start_loop(self, model: GgufModel) -> LlamaChild:
        with self._lock:
            self._go_on()
            self._child = LlamaChild(model, self._end_all)
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._loop.run_forever, name="llama-requests", daemon=True
            )
            self._thread.start()
            return self._child

    def _on_loop(self, coroutine: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            future = (
                None
                if self._loop is None
                else asyncio.run_coroutine_threadsafe(coroutine, self._loop)
            )
        if future is None:
            coroutine.close()
            raise EngineDead(str(self._dead_reason))
        try:
            return future.result()
        except CancelledError:
            raise EngineDead(str(self._dead_reason)) from None

    def _go_on(self) -> None:
        if self._dead_reason is not None:
            raise EngineDead(self._dead_reason)

    def _wait_until_loaded(self, child: LlamaChild, report: Report) -> None:
        while not self._on_loop(self._is_healthy()):
            report("loading weights", child.loaded_fraction())
            self._is_over.wait(POLL_S)
            self._go_on()

    async def _is_healthy(self) -> bool:
        try:
            return (await self._client.get("/health")).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    async def _read_props(self) -> None:
        props = (await self._client.get("/props")).json()
        self._slots = SlotTable(props["total_slots"])
        self.model = ModelInfo(
            name=self._settings.model_name,
            # llama.cpp keeps the last place of a slot free.
            context_tokens=props["default_generation_settings"]["n_ctx"] - 1,
            vocab_size=len(self._vocabulary),
            slots=props["total_slots"],
            dtype=props["model_ftype"],
        )

    def _warm_up(self) -> None:
        """Once through generating and scoring, so that no request is the first."""
        prompt = (self.tokenize("Hello") or [0])[:2] * 2
        params = SamplingParams(max_tokens=2, seed=0, logprobs=1, ignore_eos=True)
        self._wait_for(lambda sink: self.generate("warm-up", prompt, params, sink))
        self._wait_for(lambda sink: self.score("warm-up", prompt, sink))

    def _wait_for(self, start: Callable[[Sink], None]) -> None:
        ended = threading.Event()
        failures: list[RequestError] = []

        def sink(event: Event) -> None:
            if isinstance(event, Failed):
                failures.append(event.error)
            if isinstance(event, Failed | Finished | Scored):
                ended.set()

        start(sink)
        if not ended.wait(WARM_UP_TIMEOUT_S):
            raise EngineDead(f"no answer within {WARM_UP_TIMEOUT_S:.0f} s of warming up")
        if failures:
            raise failures[0]

    # Requests.

    def tokenize(self, text: str) -> list[int]:
        """See Engine.tokenize."""
        try:
            return self._client.tokenize(text)
        except httpx.HTTPError as error:
            self._is_over.wait(EXIT_NOTICE_S)
            self._go_on()
            raise EngineError(f"no answer from llama.cpp: {type(error).__name__}") from error

    def generate(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, sink: Sink
    ) -> None:
        """See Engine.generate."""
        outlet = Outlet(request_id, sink)
        generation = Generation(prompt, params, self._vocabulary, outlet, self._note_progress)
        self._submit(outlet, prompt, lambda slot: generation.run(self._client, self._scorer, slot))

    def score(self, request_id: str, prompt: Sequence[int], sink: Sink) -> None:
        """See Engine.score."""
        tokens = list(prompt)

        async def work(slot: Slot) -> Scored:
            return Scored(await self._scorer.score(tokens, slot))

        self._submit(Outlet(request_id, sink), tokens, work)

    def beam_search(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, sink: Sink
    ) -> None:
        """Not among the capabilities."""
        raise NotImplementedError("llama_cpp has no beam search")

    def _submit(self, outlet: Outlet, prompt: Sequence[int], work: Work) -> None:
        # Under the lock either the end of all requests comes after this one, or this one sees it.
        with self._lock:
            reason = self._dead_reason
            if reason is None:
                assert self._loop is not None
                self._loop.call_soon_threadsafe(self._begin, outlet, prompt, work)
        if reason is not None:
            outlet.end(Failed(EngineDead(reason)))

    def _begin(self, outlet: Outlet, prompt: Sequence[int], work: Work) -> None:
        assert self._loop is not None
        if not self._tasks:
            self._note_progress()  # Nothing was due while nothing ran.
        task = self._loop.create_task(self._serve(prompt, work))
        self._tasks[outlet.request_id] = task
        task.add_done_callback(lambda done: self._finish(outlet, done))

    async def _serve(self, prompt: Sequence[int], work: Work) -> Finished | Scored:
        try:
            async with self._slots.hold(prompt) as slot:
                return await work(slot)
        except httpx.HTTPError as error:
            # If the process is gone, all requests are about to be cancelled with its reason.
            await asyncio.sleep(EXIT_NOTICE_S)
            log.error("the connection to llama.cpp broke error=%r", error)
            raise EngineError("the connection to the engine broke; try again") from error

    def _finish(self, outlet: Outlet, task: asyncio.Task[Finished | Scored]) -> None:
        self._tasks.pop(outlet.request_id, None)
        if task.cancelled():
            reason = self._dead_reason
            outlet.end(Failed(EngineDead(reason) if reason else Cancelled("cancelled")))
            return
        error = task.exception()
        if error is None:
            outlet.end(task.result())
        elif isinstance(error, RequestError):
            outlet.end(Failed(error))
        else:
            log.error("unexpected error in a request", exc_info=error)
            outlet.end(Failed(EngineError("the engine failed; the server's log has the details")))

    def cancel(self, request_id: str) -> None:
        """See Engine.cancel. Closing the connection is what stops llama.cpp."""
        with self._lock:
            if self._dead_reason is None and self._loop is not None:
                self._loop.call_soon_threadsafe(self._cancel_one, request_id)

    def _cancel_one(self, request_id: str) -> None:
        task = self._tasks.get(request_id)
        if task is not None:
            task.cancel()

    # Life and death.

    def _note_progress(self) -> None:
        self._progress = time.monotonic()

    def last_progress(self) -> float:
        """See Engine.last_progress."""
        return self._progress

    @property
    def dead_reason(self) -> str | None:
        """See Engine.dead_reason."""
        return self._dead_reason

    def _end_all(self, reason: str) -> None:
        """The engine is gone: so are its requests. Any thread."""
        with self._lock:
            if self._dead_reason is not None:
                return
            self._dead_reason = reason
            self._is_over.set()
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._cancel_all)

    def _cancel_all(self) -> None:
        for task in list(self._tasks.values()):
            task.cancel()

    async def _close(self) -> None:
        """End what runs on the loop: requests, and what `load` waits for."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # The requests' callbacks run.
        if self._client is not None:
            await self._client.aclose()

    def die(self) -> None:
        """See Engine.die."""
        self._end_all("the engine was told to end")
        with self._lock:
            child, self._child = self._child, None
            loop, self._loop = self._loop, None
        if child is not None:
            child.kill()
        if loop is not None and self._thread is not None:
            closing = asyncio.run_coroutine_threadsafe(self._close(), loop)
            with suppress(TimeoutError):
                closing.result(STOP_TIMEOUT_S)
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join(STOP_TIMEOUT_S)
            loop.close()


async def _later(function: Callable[..., None], *args: Any) -> None:
    function(*args)
