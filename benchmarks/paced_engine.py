"""vLLM's OpenAI application on a `PacedClient`, for
`--infer_type benchmarks.paced_engine:PacedEngine` (a worker of the pool).

There is no engine behind it: only /v1 answers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, ClassVar, TypeVar

from benchmarks.paced_client import PacedClient
from gpupool.engines.base import Failed, ModelInfo, OpenAI, Report, SamplingParams, Sink
from gpupool.engines.vllm_arguments import parse_arguments
from gpupool.engines.vllm_client import describe, read_config
from gpupool.engines.vllm_environment import set_environment
from gpupool.engines.vllm_ledger import Ledger
from gpupool.engines.vllm_openai import fields_of, mount
from gpupool.errors import EngineError
from gpupool.partition import Slice
from gpupool.settings import Settings

JOIN_S = 5.0

T = TypeVar("T")


class PacedEngine:
    """Lives as VllmEngine does: an event loop on a thread of its own, on which the application
    and its client run."""

    capabilities: ClassVar[frozenset[str]] = frozenset()
    default_params: ClassVar[Mapping[str, float]] = {}
    computes_in_children: ClassVar[bool] = False
    model: ModelInfo

    def __init__(self, settings: Settings, gpu_slice: Slice) -> None:
        self._settings = settings
        self._slice = gpu_slice
        self._ledger = Ledger(lambda: None, lambda: "it was told to end")
        self._ready: Future[None] = Future()
        self._stop = asyncio.Event()
        self._thread: threading.Thread | None = None

    @staticmethod
    def check(settings: Settings, gpus_per_worker: int) -> None:
        """The benchmark that starts it gives what it takes."""

    def load(self, report: Report) -> None:
        set_environment(self._slice.cpus)
        self._thread = threading.Thread(target=self._run, name="paced", daemon=True)
        self._thread.start()
        self._ready.result()

    def _run(self) -> None:
        import uvloop

        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)
        finally:
            self._ledger.perish("its event loop has ended")

    async def _serve(self) -> None:
        self._ledger.loop = self._loop = asyncio.get_running_loop()
        args = parse_arguments(
            self._settings.engine_args,
            model_name=self._settings.model_name,
            served_names=self._settings.served_model_name,
            trust_remote_code=False,
            num_gpus=0,
        )
        self._client = PacedClient(read_config(args))
        self._app = await mount(self._client, args)
        self.model = await describe(self._client, self._settings.model_name)
        self._ready.set_result(None)
        await self._stop.wait()

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    def generate(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, sink: Sink
    ) -> None:
        sink(Failed(EngineError("this engine answers /v1 only")))

    def score(self, request_id: str, prompt: Sequence[int], sink: Sink) -> None:
        sink(Failed(EngineError("this engine has no probabilities")))

    def beam_search(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, sink: Sink
    ) -> None:
        sink(Failed(EngineError("this engine has no beams")))

    def cancel(self, request_id: str) -> None:
        """None of those that it could cancel ever runs."""

    def openai(self) -> OpenAI:
        return OpenAI(self._app, fields_of(self._app))

    def spawn(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return self._ledger.spawn(work)

    def is_lost(self) -> bool:
        return self._ledger.dead_reason is not None

    def num_inflight(self) -> int:
        return len(self._client)

    def last_progress(self) -> float:
        return self._client.last_step

    @property
    def dead_reason(self) -> str | None:
        return self._ledger.dead_reason

    def die(self) -> None:
        self._ledger.perish("it was told to end")
        if self._thread is None or self._thread is threading.current_thread():
            return
        if self._ready.done():
            with suppress(RuntimeError):  # The loop is closed.
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(JOIN_S)
