"""Engine on llama.cpp: its own server in a child process, driven over a private Unix socket.

Lives in the worker process; llama.cpp and its GPU memory live in the child. Imports no engine
library.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar

import httpx

from gpupool.capabilities import ENGINES
from gpupool.engines.base import (
    Finished,
    ModelInfo,
    OpenAI,
    Report,
    SamplingParams,
    Scored,
    Sink,
)
from gpupool.engines.llama_cpp_arguments import parse_engine_args
from gpupool.engines.llama_cpp_child import LlamaChild
from gpupool.engines.llama_cpp_client import LlamaClient
from gpupool.engines.llama_cpp_defaults import make_params
from gpupool.engines.llama_cpp_fields import absent_routes, fields_of
from gpupool.engines.llama_cpp_generation import Generation
from gpupool.engines.llama_cpp_link import LinkBroken, LlamaLink
from gpupool.engines.llama_cpp_openai import EXIT_NOTICE_S, LlamaOpenAI, Model, leaves
from gpupool.engines.llama_cpp_scoring import Scorer
from gpupool.engines.llama_cpp_slots import Slot, SlotTable
from gpupool.engines.llama_cpp_uses import Uses, uses_of
from gpupool.engines.llama_cpp_vectors import first_ask
from gpupool.engines.llama_cpp_vocabulary import Vocabulary
from gpupool.engines.on_loop import OnLoop
from gpupool.engines.outlet import Outlet
from gpupool.engines.warm_up import run_once
from gpupool.errors import ConfigError, EngineError
from gpupool.extras import install_line
from gpupool.gguf_file import find_gguf, read_gguf
from gpupool.partition import Slice
from gpupool.settings import Settings

log = logging.getLogger(__name__)

Work = Callable[[Slot], Awaitable[Finished | Scored]]

POLL_S = 0.1


class LlamaCppEngine(OnLoop):
    """One GGUF model in llama.cpp, on the slice's GPUs or on the CPU; see engines.base.Engine."""

    capabilities: ClassVar[frozenset[str]] = ENGINES["llama_cpp"]
    default_params: ClassVar[Mapping[str, float]] = {}
    computes_in_children: ClassVar[bool] = True
    model: ModelInfo

    def __init__(self, settings: Settings, gpu_slice: Slice) -> None:
        super().__init__("llama-requests")
        self._settings = settings
        self._slice = gpu_slice
        self._args = parse_engine_args(settings.engine_args)
        self._num_others = 0  # requests that are not the loop's own
        self._counting = threading.Lock()
        # Set by load, the child last.
        self._child: LlamaChild | None = None
        self._uses: Uses
        self._client: LlamaClient
        self._link: LlamaLink
        self._slots: SlotTable
        self._scorer: Scorer
        self._vocabulary: Vocabulary

    @staticmethod
    def check(settings: Settings, gpus_per_worker: int) -> None:
        """See Engine.check. Any number of GPUs will do: the layers are split over them."""
        if importlib.util.find_spec("xllamacpp") is None:
            raise ConfigError(
                "--infer_type llama_cpp needs xllamacpp, which is not installed; "
                f"{install_line('llama-cpp')}"
            )
        args = parse_engine_args(settings.engine_args)
        uses_of(args, read_gguf(find_gguf(settings.model_name)))

    # Loading.

    def _load(self, report: Report) -> None:
        report("reading the file's header", None)
        model = read_gguf(find_gguf(self._settings.model_name))
        self._uses = uses_of(self._args, model)
        params = make_params(self._args, model, self._slice)
        report("starting llama.cpp", None)
        self._requests.start()
        child = LlamaChild(model, self._requests.end)
        self._link = LlamaLink(child.socket_path, child.secret)
        self._client = LlamaClient(child.socket_path, child.secret, self._link)
        self._child = child
        # On the loop's thread, as the kernel ends the child together with the thread.
        self._requests.run(_later(child.start, params, len(self._slice.gpus)))
        self._vocabulary = Vocabulary(model)
        self._wait_until_loaded(child, report)
        self._scorer = Scorer(self._client, self._vocabulary, self._note_progress)
        self._requests.run(self._read_props())
        report("warming up", None)
        self._warm_up()

    def _wait_until_loaded(self, child: LlamaChild, report: Report) -> None:
        while not self._requests.run(self._is_healthy()):
            report("loading weights", child.loaded_fraction())
            self._requests.has_ended.wait(POLL_S)
            self._requests.check()

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
            context_tokens=props["default_generation_settings"]["n_ctx"],
            vocab_size=len(self._vocabulary),
            slots=props["total_slots"],
            dtype=props["model_ftype"],
            generates=self._uses.generates,
        )
        self._has_tools = bool(props["chat_template_caps"]["supports_tools"])
        log.info(
            "llama.cpp has %s slot(s) of %s tokens each",
            self.model.slots,
            self.model.context_tokens,
        )

    def _warm_up(self) -> None:
        """Once through what it is there for, so that no request is the first."""
        if not self._uses.generates:
            self._ask_first()
            return
        prompt = (self.tokenize("Hello") or [0])[:2] * 2
        params = SamplingParams(max_tokens=2, seed=0, logprobs=1, ignore_eos=True)
        run_once(lambda sink: self.generate("warm-up", prompt, params, sink))
        run_once(lambda sink: self.score("warm-up", prompt, sink))

    def _ask_first(self) -> None:
        try:
            self._requests.run(self._link.ask(*first_ask(self._uses)))
        except LinkBroken:
            self._requests.has_ended.wait(EXIT_NOTICE_S)
            self._requests.check()
            raise

    # Requests.

    def tokenize(self, text: str) -> list[int]:
        """See Engine.tokenize."""
        self._count_others(1)
        try:
            return self._client.tokenize(text)
        except httpx.HTTPError as error:
            self._requests.has_ended.wait(EXIT_NOTICE_S)
            self._requests.check()
            raise EngineError(f"no answer from llama.cpp: {type(error).__name__}") from error
        finally:
            self._count_others(-1)

    def decode(self, tokens: Sequence[int]) -> str:
        """See engines.base.Decodes."""
        pieces = (self._vocabulary.piece(token) for token in tokens)
        return b"".join(pieces).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """See engines.base.Decodes."""
        return self._vocabulary.piece(token)

    def _count_others(self, change: int) -> None:
        with self._counting:
            if not self.num_inflight():
                self._note_progress()
            self._num_others += change

    def generate(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, sink: Sink
    ) -> None:
        """See Engine.generate."""
        outlet = Outlet(request_id, sink)
        generation = Generation(prompt, params, self._vocabulary, outlet, self._note_progress)
        self._submit(outlet, prompt, lambda slot: generation.run(self._client, self._scorer, slot))

    def score(self, request_id: str, prompt: Sequence[int], sink: Sink, top: int = 0) -> None:
        """See Engine.score."""
        tokens = list(prompt)

        async def work(slot: Slot) -> Scored:
            return await self._scorer.score(tokens, top, slot)

        self._submit(Outlet(request_id, sink), tokens, work)

    def beam_search(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, sink: Sink
    ) -> None:
        """Not among the capabilities."""
        raise NotImplementedError("llama_cpp has no beam search")

    def _submit(self, outlet: Outlet, prompt: Sequence[int], work: Work) -> None:
        self._requests.submit(outlet, lambda: self._serve(prompt, work))

    async def _serve(self, prompt: Sequence[int], work: Work) -> Finished | Scored:
        try:
            async with self._slots.hold(prompt) as slot:
                return await work(slot)
        except LinkBroken as error:
            # If the process is gone, all requests are about to be cancelled with its reason.
            await asyncio.sleep(EXIT_NOTICE_S)
            log.error("the connection to llama.cpp broke error=%r", error)
            raise EngineError("the connection to the engine broke; try again") from error

    # llama.cpp's own OpenAI handlers.

    def openai(self) -> OpenAI:
        """See engines.base.SpeaksOpenAI."""
        app = LlamaOpenAI(
            self._link,
            self._slots,
            Model(
                self.model,
                (self._settings.served_model_name or (self.model.name,))[0],
                self._vocabulary,
                self._has_tools,
            ),
            count=self._count_others,
            note_progress=self._note_progress,
        )
        return OpenAI(app, fields_of(self._uses), leaves=leaves, absent=absent_routes(self._uses))

    # Life and death.

    def num_inflight(self) -> int:
        """See Engine.num_inflight. llama.cpp's process tokenizes, too."""
        return self._requests.num_running + self._num_others

    def die(self) -> None:
        """See Engine.die."""
        self._requests.end("the engine was told to end")
        if self._child is not None:
            self._child.kill()
        self._requests.close(self._close_client)

    async def _close_client(self) -> None:
        if self._child is not None:
            await self._client.aclose()


async def _later(function: Callable[..., None], *args: Any) -> None:
    function(*args)
