"""A client of vLLM's without an engine: it has all that vLLM's OpenAI application asks of one, and
gives every request a token at each tick of one clock, as the steps of a batch do (a worker of the
pool, or the process of `paced_server`).

The text of a token tells when its request reached the client and when it was made, by the
monotonic clock that all processes of a machine share; so whoever reads it knows how long the rest
took. Imports vLLM only inside functions.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.profiled import Profile
from benchmarks.ticks import Ticks

STEP_S = 0.02
TOKEN = 0
END = ";"  # of a token's text: a front end that is late gets several tokens in one piece


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the text of a token tells."""

    came_at: float  # when the request reached the engine
    made_at: float  # when the token was due, however late the event loop was


@dataclass(eq=False, slots=True)
class _Stream:
    outputs: Any  # vLLM's queue of one request
    prompt: list[int]
    num_tokens: int
    came_at: float
    num_made: int = 0


class PacedClient:
    """Made on the event loop on which the application runs, and used there only."""

    is_running = True
    is_stopped = False
    errored = False
    dead_error = RuntimeError("this engine cannot die")

    def __init__(self, vllm_config: Any) -> None:
        from vllm.renderers import renderer_from_config
        from vllm.v1.engine.input_processor import InputProcessor

        self.vllm_config = vllm_config
        self.model_config = vllm_config.model_config
        self.renderer = renderer_from_config(vllm_config)
        self.input_processor = InputProcessor(vllm_config, self.renderer)
        self._streams: dict[str, _Stream] = {}
        self._ticks = Ticks(STEP_S, self._step)
        self._profile = Profile()
        self.last_step = time.monotonic()

    def __len__(self) -> int:
        return len(self._streams)

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """There is room for all."""

    async def check_health(self) -> None:
        """It is well."""

    async def is_tracing_enabled(self) -> bool:
        return False

    async def do_log_stats(self) -> None:
        """There are none."""

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """Give no more tokens."""
        for one in [request_id] if isinstance(request_id, str) else request_id:
            self._end(one)

    def shutdown(self, timeout: float | None = None) -> None:
        """Nothing runs beside the event loop."""

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **_: Any
    ) -> AsyncGenerator[Any, None]:
        """As vLLM's own: a piece is what is new since the last one."""
        from vllm.v1.engine.output_processor import RequestOutputCollector

        outputs = RequestOutputCollector(sampling_params.output_kind, request_id)
        stream = _Stream(
            outputs,
            list(prompt["prompt_token_ids"]),
            sampling_params.max_tokens,
            came_at=time.monotonic(),
        )
        if not self._streams:
            self._ticks.start()
            self._profile.start()
            self.last_step = stream.came_at
        self._streams[request_id] = stream
        try:
            is_over = False
            while not is_over:
                output = outputs.get_nowait() or await outputs.get()
                is_over = output.finished
                yield output
        finally:
            self._end(request_id)

    def _end(self, request_id: str) -> None:
        if self._streams.pop(request_id, None) and not self._streams:
            self._ticks.stop()
            self._profile.stop()

    def _step(self, made_at: float) -> None:
        self.last_step = time.monotonic()
        for request_id, stream in list(self._streams.items()):
            # One that came while the loop was late was not in the batch.
            if stream.came_at < made_at:
                stream.num_made += 1
                stream.outputs.put(_write_output(request_id, stream, made_at))
                if stream.num_made == stream.num_tokens:
                    self._end(request_id)


def _write_output(request_id: str, stream: _Stream, made_at: float) -> Any:
    from vllm.outputs import CompletionOutput, RequestOutput

    is_last = stream.num_made == stream.num_tokens
    completion = CompletionOutput(
        index=0,
        text=write_stamp(Stamp(stream.came_at, made_at)),
        token_ids=[TOKEN],
        cumulative_logprob=None,
        logprobs=None,
        finish_reason="length" if is_last else None,
    )
    # vLLM tells of the prompt with the first token only.
    prompt = stream.prompt if stream.num_made == 1 else None
    return RequestOutput(request_id, None, prompt, None, [completion], finished=is_last)


def write_stamp(stamp: Stamp) -> str:
    """The text of a token."""
    return f"{stamp.came_at:.6f} {stamp.made_at:.6f}{END}"


def read_stamps(text: str) -> list[Stamp]:
    """Those of all tokens in a piece of text."""
    return [Stamp(*map(float, one.split())) for one in text.split(END) if one]
