"""transformers' continuous batching with our sampling in it (worker process).

Two threads: transformers' own runs the model step by step, ours collects what the steps give
and feeds the sinks. An error of one request stays that request's; when transformers' thread
ends, every request ends with it.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from gpupool.engines.base import Failed
from gpupool.engines.sampling import Draw, choose_tokens
from gpupool.engines.sequence import RunningSequence
from gpupool.errors import Cancelled, EngineDead, EngineError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.generation.configuration_utils import ContinuousBatchingConfig
    from transformers.generation.continuous_batching.cb_logits_processors import (
        ContinuousBatchingLogitsProcessor,
    )
    from transformers.generation.continuous_batching.requests import GenerationOutput

log = logging.getLogger(__name__)

POLL_S = 0.2  # how long a dead batch may go unnoticed
NO_END_TOKEN = [-1]  # None would mean the model's own


def _quiet_library_log() -> None:
    """transformers' batching writes to stderr by a handler of its own; its warnings go to ours."""
    from transformers.generation.continuous_batching.requests import logger

    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.WARNING)


class Batch:
    """The running batch of one loaded model, from construction to `stop`."""

    def __init__(self, model: PreTrainedModel, config: ContinuousBatchingConfig) -> None:
        from transformers import GenerationConfig

        _quiet_library_log()
        # A generation config of our own: the model's may sample, penalize or suppress, and all
        # of that is decided per request, by `choose_tokens`. Its highest logit is the choice.
        plain = GenerationConfig(do_sample=False, eos_token_id=NO_END_TOKEN[0], pad_token_id=0)
        self._manager: Any = model.init_continuous_batching(plain, config)
        self.last_progress = time.monotonic()
        self._sequences: dict[str, RunningSequence] = {}
        self._keys: dict[str, str] = {}
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._reason: str | None = None
        self._is_stopping = False
        self._started = threading.Event()
        self._add_processor()
        self._manager.warmup()
        if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
            _bridge_devices(self.cache)
        self._collector = threading.Thread(target=self._collect, name="batch", daemon=True)

    def _add_processor(self) -> None:
        processors = self._manager.logit_processor
        processors.logits_processor.append(_make_processor(self))
        processors.tensors_required += 1
        processors.do_processing = True

    @property
    def slots(self) -> int:
        """Sequences that run in one step."""
        return int(self._manager.continuous_batching_config.max_requests_per_batch)

    @property
    def cache(self) -> Any:
        """The paged cache of keys and values."""
        return self._manager.batch_processor.cache

    @property
    def cache_tokens(self) -> int:
        """Tokens that fit into the cache, of all sequences together."""
        cache, config = self.cache, self._manager.continuous_batching_config
        return int(cache.num_blocks * config.page_size)

    @property
    def num_inflight(self) -> int:
        """Sequences that run or wait to run."""
        return len(self._sequences)

    def start(self) -> None:
        """Begin to run; requests may come from now on."""
        self._collector.start()
        self._started.wait()

    @property
    def dead_reason(self) -> str | None:
        """Why nothing runs any more, or None."""
        if self._reason is None and self._started.is_set() and not self._manager.is_running():
            error = self._manager.background_thread_status.fatal_error
            what = f"{type(error).__name__}: {error}" if error else "its thread ended"
            self._reason = f"transformers' continuous batching stopped: {what}"
        return self._reason

    def add(self, sequence: RunningSequence) -> None:
        """Run one more sequence; its outlet ends in any case. Any thread."""
        key = str(next(self._numbers))
        with self._lock:
            self._sequences[key] = sequence
            self._keys[sequence.outlet.request_id] = key
        accepted = self._manager.add_request(
            sequence.prompt,
            request_id=key,
            max_new_tokens=sequence.params.max_tokens,
            streaming=True,
            eos_token_id=sorted(sequence.end_tokens) or NO_END_TOKEN,
        )
        # A batch that died after this line's request was queued never looks at its queue again.
        if accepted is None or self.dead_reason is not None:
            self._forget(key)
            sequence.outlet.end(Failed(EngineDead(self.dead_reason or "the engine is stopping")))

    def cancel(self, request_id: str) -> None:
        """End a running sequence, if it is one of ours. Any thread."""
        with self._lock:
            key = self._keys.get(request_id)
            sequence = self._sequences.get(key) if key is not None else None
        if key is not None and sequence is not None:
            self._drop(key)
            sequence.outlet.end(Failed(Cancelled("the request was cancelled")))

    def draws(self, keys: list[str]) -> list[Draw | None]:
        """The sampling state of each row of the next step. On transformers' thread."""
        self.last_progress = time.monotonic()
        with self._lock:
            found = [self._sequences.get(key) for key in keys]
        return [sequence.draw if sequence is not None else None for sequence in found]

    def stop(self, timeout_s: float) -> None:
        """End after the running step; everything unfinished ends with EngineDead."""
        self._is_stopping = True
        self._reason = self._reason or "the engine was told to end"
        if self._manager.is_running():
            self._manager.stop(block=True, timeout=timeout_s, hard_stop=True)
        if self._collector.is_alive() and self._collector is not threading.current_thread():
            self._collector.join(timeout_s)
        self._end_all()

    # On the collector thread.

    def _collect(self) -> None:
        # Started here because a thread inherits being a daemon: a batch that nobody stopped
        # must not keep the interpreter from exiting.
        self._manager.start()
        self._started.set()
        while not self._is_stopping:
            output = self._manager.get_result(timeout=POLL_S)
            if output is not None:
                self._take(output)
            elif self.dead_reason is not None:
                break
        if not self._is_stopping:
            log.error("the batch is dead: %s", self.dead_reason)
        self._end_all()

    def _take(self, output: GenerationOutput) -> None:
        key = output.request_id
        with self._lock:
            sequence = self._sequences.get(key)
        is_last = output.is_finished()
        if sequence is None:
            # Cancelled before transformers had seen it: its queues are not read in order.
            if not is_last:
                self._manager.cancel_request(key)
            return
        if output.error is not None:
            self._fail(key, sequence, output.error)
            return
        try:
            sequence.take(output.generated_tokens, is_last)
        except Exception:
            log.exception("a completion could not be put together")
            sequence.outlet.end(Failed(EngineError("the completion could not be put together")))
        if is_last:
            self._forget(key)
        elif sequence.is_over:
            self._drop(key)

    def _fail(self, key: str, sequence: RunningSequence, message: str) -> None:
        self._forget(key)
        if self._manager.background_thread_status.can_accept_new_requests() is None:
            log.error("transformers refused a request: %s", message)
            sequence.outlet.end(Failed(EngineError("the engine failed on this request")))
        else:
            sequence.outlet.end(Failed(EngineDead("the engine died while it ran this request")))

    def _drop(self, key: str) -> None:
        self._forget(key)
        self._manager.cancel_request(key)

    def _forget(self, key: str) -> None:
        with self._lock:
            sequence = self._sequences.pop(key, None)
            if sequence is not None and self._keys.get(sequence.outlet.request_id) == key:
                del self._keys[sequence.outlet.request_id]

    def _end_all(self) -> None:
        with self._lock:
            left = list(self._sequences.values())
            self._sequences.clear()
            self._keys.clear()
        for sequence in left:
            sequence.outlet.end(Failed(EngineDead(self.dead_reason or "the engine is gone")))


def _bridge_devices(cache: Any) -> None:
    """Let layers on several GPUs use the one cache, which is on the first.

    transformers writes a layer's keys into the cache as if both were on one device.
    """
    update, home = cache.update, cache.cache_tensor.device

    def update_across(
        key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        away = key_states.device
        for name in ("read_index", "write_index"):
            kwargs[name] = [index.to(home) for index in kwargs[name]]
        key, value = update(key_states.to(home), value_states.to(home), layer_idx, kwargs)
        return key.to(away), value.to(away)

    cache.update = update_across


def _make_processor(batch: Batch) -> ContinuousBatchingLogitsProcessor:
    """transformers wants a subclass, and the import is heavy: hence a class inside a function."""
    import torch
    from transformers.generation.continuous_batching.cb_logits_processors import (
        ContinuousBatchingLogitsProcessor,
    )

    class Processor(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
        """Hands each row of a step to the sequence it belongs to."""

        supported_kwargs: dict[str, type] = {}
        ignored_kwargs: tuple[str, ...] = ()
        draws: list[Draw | None] = []

        def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
            """No arguments go through transformers' tensors."""
            int32_tensor.fill_(0)

        def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
            """Called right before the step, on the same thread: whose the rows will be."""
            self.draws = batch.draws(
                [future.state.request_id for future in requests_with_new_token]
            )
            return torch.zeros(len(self.draws), dtype=torch.int32)

        def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
            """There may be more rows than sequences: prompts that are read in several steps."""
            try:
                choose_tokens(scores, self.draws)
            except Exception:
                # An exception here would end every request of the engine, the waiting ones too.
                log.exception("this step's tokens could not be chosen")
                for draw in self.draws:
                    if draw is not None:
                        draw.error = EngineError("this request's token could not be chosen")
            return scores

    return Processor()
