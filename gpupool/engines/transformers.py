"""Engine on transformers: its own continuous batching, our sampling (worker process).

It lives in the worker itself. The longest that it kept other threads waiting, on two cores that
others used too, was 0.54 s while it loaded (imports) and 0.25 s while 32 sequences ran (99 of
100 waits: under 15 ms). Where a native engine crashes, transformers raises.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gpupool import json_lines
from gpupool.capabilities import ENGINES
from gpupool.engines import scoring
from gpupool.engines import transformers_model as models
from gpupool.engines.base import (
    Failed,
    Finished,
    Grammar,
    ModelInfo,
    Report,
    SamplingParams,
    Sink,
)
from gpupool.engines.beside import Beside, Check, Job
from gpupool.engines.guides import Guide, GuideMaker
from gpupool.engines.outlet import Outlet
from gpupool.engines.sequence import RunningSequence
from gpupool.engines.transformers_args import parse_engine_args
from gpupool.engines.transformers_batch import Batch
from gpupool.engines.transformers_passes import Passes
from gpupool.engines.transformers_sizes import make_config
from gpupool.engines.transformers_text import ModelText
from gpupool.engines.warm_up import run_once
from gpupool.errors import EngineDead
from gpupool.partition import Slice
from gpupool.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 3.0  # for each of the three threads; `die` has 10 s


class TransformersEngine:
    """One model in transformers, on the slice's GPUs or on the CPU; see engines.base.Engine."""

    capabilities: ClassVar[frozenset[str]] = ENGINES["transformers"]
    default_params: ClassVar[Mapping[str, float]] = {
        "temperature": 0.1,
        "top_p": 0.95,
        "max_tokens": 400,
    }
    computes_in_children: ClassVar[bool] = False
    model: ModelInfo

    def __init__(self, settings: Settings, gpu_slice: Slice) -> None:
        self._settings = settings
        self._slice = gpu_slice
        self._args = parse_engine_args(settings.engine_args)
        self._is_dying = threading.Event()
        self._batch: Batch | None = None
        self._beside: Beside | None = None
        self._guides: GuideMaker | None = None
        self._network: PreTrainedModel
        self._tokenizer: PreTrainedTokenizerBase
        self._text: ModelText
        self._passes: Passes

    @staticmethod
    def check(settings: Settings, gpus_per_worker: int) -> None:
        """See Engine.check. Any number of GPUs will do: layers are spread over them."""
        args = parse_engine_args(settings.engine_args)
        models.check_library()
        models.check_model(settings, args)

    # Loading.

    def load(self, report: Report) -> None:
        """See Engine.load."""
        report("importing transformers", None)
        models.check_library()
        json_lines.take_over("transformers")
        report("reading the tokenizer", None)
        self._tokenizer = models.read_tokenizer(self._settings, self._args)
        self._text = ModelText(self._tokenizer)
        self._go_on()
        report("loading weights", None)
        self._network, ends = models.read_model(self._settings, self._args, self._slice, report)
        own = self._tokenizer.eos_token_id
        self._text.end_tokens = tuple(ends if own is None else {*ends, own})
        self._go_on()
        report("allocating the cache", None)
        self._start()
        self._go_on()
        report("warming up", None)
        self._warm_up()

    def _go_on(self) -> None:
        if self._is_dying.is_set():
            self.die()
            raise EngineDead("the engine was told to end while it loaded")

    def _start(self) -> None:
        # Before the batch, which may switch its model to another attention.
        self._passes = Passes(models.share_weights(self._network), self._text)
        config = make_config(self._args, self._network, self._slice)
        self._batch = Batch(self._network, config)
        group_tokens = scoring.GROUP_TOKENS[self._network.device.type]
        self._beside = Beside(group_tokens)
        context = models.context_tokens(self._network.config, self._args)
        if self._batch.cache_tokens < context:
            log.warning(
                "the cache is smaller than the model's context cache_tokens=%d context_tokens=%d",
                self._batch.cache_tokens,
                context,
            )
        self.model = ModelInfo(
            name=self._settings.model_name,
            context_tokens=min(context, self._batch.cache_tokens),
            vocab_size=self._network.config.get_text_config().vocab_size,
            slots=self._batch.slots,
            dtype=str(self._network.dtype).removeprefix("torch."),
        )
        self._guides = GuideMaker(self._tokenizer, self.model.vocab_size, self._text.end_tokens)
        self._batch.start()
        self._beside.start()

    def _warm_up(self) -> None:
        """Once through everything that a request can ask for, so that no request is the first."""
        prompt = (self.tokenize("Hello") or [0])[:2] * 4
        params = SamplingParams(
            max_tokens=2, top_p=0.9, seed=0, logprobs=1, repetition_penalty=1.1, ignore_eos=True
        )
        beam = SamplingParams(max_tokens=2, beam_width=2, num_beams_returned=1)
        run_once(lambda sink: self.generate("warm-up", prompt, params, sink))
        if self._guides is not None and self._guides.is_able:
            bound = SamplingParams(max_tokens=2, grammar=Grammar("json_object"))
            run_once(lambda sink: self.generate("warm-up", prompt, bound, sink))
        run_once(lambda sink: self.score("warm-up", prompt, sink, top=1))
        run_once(lambda sink: self.embed("warm-up", prompt, sink))
        run_once(lambda sink: self.beam_search("warm-up", prompt, beam, sink))

    # Text and tokens.

    def tokenize(self, text: str) -> list[int]:
        """See Engine.tokenize."""
        return self._text.tokenize(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """See engines.base.Decodes."""
        return self._text.decode(tokens)

    def token_bytes(self, token: int) -> bytes:
        """See engines.base.Decodes."""
        return self._text.token_bytes(token)

    @property
    def calls_tools(self) -> bool:
        """See engines.base.Chats."""
        return self._text.calls_tools

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        options: Mapping[str, Any],
    ) -> list[int]:
        """See engines.base.Chats."""
        return self._text.render(messages, tools, options)

    # Requests.

    def generate(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, sink: Sink
    ) -> None:
        """See Engine.generate."""
        outlet = Outlet(request_id, sink)
        if self._refuse_if_dead(outlet):
            return
        if params.grammar is None:
            self._begin(prompt, params, outlet, None)
            return
        assert self._guides is not None
        self._guides.add(
            outlet, params.grammar, lambda guide: self._begin(prompt, params, outlet, guide)
        )

    def _begin(
        self, prompt: Sequence[int], params: SamplingParams, outlet: Outlet, guide: Guide | None
    ) -> None:
        decode, text = self._text.decoder(params), self._text.token_text
        sequence = RunningSequence(
            prompt, params, self._text.ends(params), decode, text, outlet, guide
        )
        assert self._batch is not None
        self._batch.add(sequence)

    def score(self, request_id: str, prompt: Sequence[int], sink: Sink, top: int = 0) -> None:
        """See Engine.score."""
        outlet = Outlet(request_id, sink)
        self._add_beside(Job(outlet, list(prompt), top, together=self._passes.score))

    def embed(self, request_id: str, prompt: Sequence[int], sink: Sink) -> None:
        """See engines.base.Embeds."""
        outlet = Outlet(request_id, sink)
        self._add_beside(Job(outlet, list(prompt), together=self._passes.embed))

    def beam_search(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, sink: Sink
    ) -> None:
        """See Engine.beam_search."""
        tokens = list(prompt)

        def search(check: Check) -> Finished:
            return self._passes.search(tokens, params, check)

        self._add_beside(Job(Outlet(request_id, sink), search=search))

    def _add_beside(self, job: Job) -> None:
        if not self._refuse_if_dead(job.outlet):
            assert self._beside is not None
            self._beside.add(job)

    def _refuse_if_dead(self, outlet: Outlet) -> bool:
        reason = self.dead_reason
        if reason is not None:
            outlet.end(Failed(EngineDead(reason)))
        return reason is not None

    def cancel(self, request_id: str) -> None:
        """See Engine.cancel."""
        # The guides first: what they have let go is in the batch.
        if self._guides is not None:
            self._guides.cancel(request_id)
        if self._batch is not None:
            self._batch.cancel(request_id)
        if self._beside is not None:
            self._beside.cancel(request_id)

    # Life.

    def num_inflight(self) -> int:
        """See Engine.num_inflight."""
        parts = (self._batch, self._beside, self._guides)
        return sum(part.num_inflight for part in parts if part is not None)

    def last_progress(self) -> float:
        """See Engine.last_progress."""
        parts = (self._batch, self._beside, self._guides)
        times = [part.last_progress for part in parts if part is not None]
        return max(times, default=time.monotonic())

    @property
    def dead_reason(self) -> str | None:
        """See Engine.dead_reason."""
        if self._is_dying.is_set():
            return "the engine was told to end"
        return self._batch.dead_reason if self._batch is not None else None

    def die(self) -> None:
        """See Engine.die."""
        self._is_dying.set()
        if self._guides is not None:
            self._guides.stop("the engine was told to end")
        if self._beside is not None:
            self._beside.stop(STOP_TIMEOUT_S, "the engine was told to end")
        if self._batch is not None:
            self._batch.stop(STOP_TIMEOUT_S)
