"""The vLLM engine: vLLM's own async client on an event loop of its own (worker process).

vLLM's EngineCore and its workers are child processes, in the worker's process group. Imports
vLLM only inside functions.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
import time
from argparse import Namespace
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar, TypeVar

from gpupool.capabilities import ENGINES
from gpupool.engines.base import ModelInfo, OpenAI, Report, SamplingParams, Sink
from gpupool.engines.private_folder import PrivateFolder
from gpupool.engines.vllm_arguments import parse_arguments, share_memory
from gpupool.engines.vllm_calls import Calls
from gpupool.engines.vllm_client import describe, read_config, start_client
from gpupool.engines.vllm_environment import (
    SOCKET_NAME,
    keep_sockets_in,
    require_keys_are_ours,
    set_environment,
)
from gpupool.engines.vllm_ledger import Ledger, Work
from gpupool.engines.vllm_model import check_model, has_gpus, require_vllm
from gpupool.engines.vllm_openai import fields_of, media_by_url, mount, telling_bad_formats
from gpupool.engines.vllm_process import Family
from gpupool.engines.vllm_request import Request
from gpupool.errors import EngineDead
from gpupool.partition import Slice
from gpupool.settings import Settings

log = logging.getLogger(__name__)

WATCH_S = 0.25
SHUTDOWN_S = 5.0
GRACE_S = 6.0
DIE_S = 9.0
KILL_S = 0.1

T = TypeVar("T")


class VllmEngine:
    """One model in vLLM. `args`, `client` and `loop` are for vLLM's own OpenAI application,
    which may be mounted on them once `load` has returned."""

    capabilities: ClassVar[frozenset[str]] = ENGINES["vllm"]
    default_params: ClassVar[Mapping[str, float]] = {}
    computes_in_children: ClassVar[bool] = True
    model: ModelInfo
    args: Namespace
    client: Any
    loop: asyncio.AbstractEventLoop

    def __init__(self, settings: Settings, gpu_slice: Slice) -> None:
        self._settings = settings
        self._slice = gpu_slice
        self._lock = threading.Lock()
        self._ledger = Ledger(self._note_progress, lambda: self._family.obituary())
        self._progress = time.monotonic()
        self._ready: Future[None] = Future()
        self._stop = asyncio.Event()
        self._told_to_die = False
        self._thread: threading.Thread | None = None
        self._tokenizer_lock = threading.Lock()

    @staticmethod
    def check(settings: Settings, gpus_per_worker: int) -> None:
        """Installation, arguments and model; takes as long as importing vLLM does."""
        on_gpu = has_gpus(settings)
        require_keys_are_ours(has_keys=bool(settings.api_key or settings.api_key_file))
        set_environment(())
        require_vllm(on_gpu=on_gpu)
        check_model(_parse(settings, gpus_per_worker if on_gpu else 0))

    def load(self, report: Report) -> None:
        """Start vLLM on a thread of its own and wait for it."""
        with self._lock:
            self._ledger.check()
            self._family = Family()
            self._sockets = PrivateFolder("gpupool-vllm-", longest_name=SOCKET_NAME)
            run = partial(self._run, report)
            self._thread = threading.Thread(target=run, name="vllm", daemon=True)
            self._thread.start()
        self._ready.result()

    # The life of the engine's thread.

    def _run(self, report: Report) -> None:
        try:
            report("importing vLLM", None)
            keep_sockets_in(self._sockets.path)
            set_environment(() if self._slice.gpus else self._slice.cpus)
            require_vllm(on_gpu=bool(self._slice.gpus))
            self.args = _parse(self._settings, len(self._slice.gpus))
            if not self._slice.gpus:
                share_memory(self.args, len(self._slice.cpus))
            import uvloop

            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve(report))
        except BaseException as error:
            if self._settle(error) and not self._told_to_die:
                log.exception("the vLLM thread failed")
        finally:
            self._ledger.perish("vLLM's thread has ended")
            self._family.kill(KILL_S)
            self._sockets.remove()

    def _settle(self, error: BaseException | None) -> bool:
        """Tell `load` how it ended; whether it had been told before."""
        with self._lock:
            if self._ready.done():
                return True
            if error is None:
                self._ready.set_result(None)
            else:
                self._ready.set_exception(error)
            return False

    async def _serve(self, report: Report) -> None:
        self._ledger.loop = self.loop = asyncio.get_running_loop()
        try:
            await self._start(report)
            report("warming up", None)
            if self.model.generates:
                await self._calls.warm_up(self.tokenize("a")[-1], self._scored_tokens())
            self._openai_app = await mount(self.client, self.args)
            self._family.remember()
            self._settle(None)
            await self._watch()
        finally:
            # The loop takes no calls from other threads after this.
            self._ledger.perish("vLLM's thread has ended")
            if hasattr(self, "client"):
                self.client.shutdown(timeout=SHUTDOWN_S)

    async def _start(self, report: Report) -> None:
        report("reading the model's configuration", None)
        config = read_config(self.args)
        report("starting the engine and loading weights", None)
        self._ledger.check()
        self.client = await start_client(self.args, config, self._note_progress)
        self._tokenizer = copy.deepcopy(self.client.get_tokenizer())
        self.model = await describe(self.client, self._settings.model_name)
        self._calls = Calls(self.client, self.model)

    def _scored_tokens(self) -> int:
        """How long a prompt the warm-up scores: on GPUs one that fills a whole step, so that an
        engine without the memory for it fails while loading and not under a request."""
        longest = self.model.context_tokens - 1
        if not self._slice.gpus:
            return min(8, longest)
        step: int = self.client.vllm_config.scheduler_config.max_num_batched_tokens
        return min(step, longest)

    async def _watch(self) -> None:
        """Until told to stop, or until vLLM is dead."""
        while not self._stop.is_set() and not self.client.errored:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), WATCH_S)
        if not self._stop.is_set():
            self._ledger.perish(self._family.obituary())
            log.error("vLLM died reason=%r", self._ledger.dead_reason)

    # Requests.

    def tokenize(self, text: str) -> list[int]:
        """One copy and a lock: vLLM's own makes, and keeps, a copy per thread that asks at the
        same time."""
        with self._tokenizer_lock:
            return list(self._tokenizer.encode(text))

    def generate(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, sink: Sink
    ) -> None:
        """One request of vLLM's."""
        self._begin(
            request_id,
            sink,
            lambda request: self._calls.generate(request_id, prompt, params, request.emit),
        )

    def score(self, request_id: str, prompt: Sequence[int], sink: Sink, top: int = 0) -> None:
        """Never from the prefix cache: vLLM computes every position anew for it."""
        self._begin(request_id, sink, lambda _: self._calls.score(request_id, prompt, top))

    def beam_search(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, sink: Sink
    ) -> None:
        """As transformers defines it; see vllm_beams."""
        self._begin(request_id, sink, lambda _: self._calls.beam_search(request_id, prompt, params))

    def cancel(self, request_id: str) -> None:
        """Takes effect with vLLM's current step."""
        self._ledger.cancel(request_id)

    def _begin(self, request_id: str, sink: Sink, work: Work) -> None:
        self._ledger.begin(Request(request_id, sink), work)

    # vLLM's own OpenAI application.

    def openai(self) -> OpenAI:
        """See engines.base.SpeaksOpenAI."""
        app = self._openai_app
        return OpenAI(telling_bad_formats(app), fields_of(app), media_by_url(self.args))

    def spawn(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """See engines.base.SpeaksOpenAI."""
        return self._ledger.spawn(work)

    def is_lost(self) -> bool:
        """See engines.base.SpeaksOpenAI."""
        return self._ledger.dead_reason is not None or bool(self.client.errored)

    def metrics_text(self) -> str:
        """vLLM keeps its metrics in the library's default registry."""
        from prometheus_client import generate_latest

        return generate_latest().decode()

    # Progress and death.

    def num_inflight(self) -> int:
        """vLLM's own count has the requests of its OpenAI application too."""
        if self._ledger.dead_reason is not None or not hasattr(self, "client"):
            return 0
        theirs: int = self.client.output_processor.get_num_unfinished_requests()
        return max(len(self._ledger), theirs)

    def last_progress(self) -> float:
        """vLLM reports every step of its scheduler, a prefill's too."""
        return self._progress

    def _note_progress(self) -> None:
        self._progress = time.monotonic()

    @property
    def dead_reason(self) -> str | None:
        """Set a moment after vLLM's processes die, and by `die`."""
        return self._ledger.dead_reason

    def die(self) -> None:
        """vLLM's own shutdown if it is loaded and does it in time, else SIGKILL."""
        deadline = time.monotonic() + DIE_S
        self._told_to_die = True
        was_ready = self._settle(EngineDead("the engine was ended while it was loading"))
        self._ledger.perish("the engine was ended")
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        if was_ready and hasattr(self, "loop"):
            with suppress(RuntimeError):  # The loop is closed.
                self.loop.call_soon_threadsafe(self._stop.set)
            thread.join(GRACE_S)
        while thread.is_alive() and time.monotonic() < deadline:
            self._family.kill(KILL_S)
            thread.join(KILL_S)
        self._family.kill(max(KILL_S, deadline - time.monotonic()))


def _parse(settings: Settings, num_gpus: int) -> Namespace:
    return parse_arguments(
        settings.engine_args,
        model_name=settings.model_name,
        served_names=settings.served_model_name,
        trust_remote_code=settings.trust_remote_code,
        num_gpus=num_gpus,
    )
