"""A scripted engine with everything that an engine may offer besides.

A token is a byte. A prompt "...|text" is answered with the text, which then stops; any other with
its own tokens in turn, until the length. A token's log-probability is -token / 64, and the byte
before it is better by one. A prompt that begins with ! fails; one that begins with † kills the
engine after the first token of the answer, and with ‡ before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gpupool.engines.base import (
    Chunk,
    Completion,
    Embedded,
    Event,
    Failed,
    Finished,
    SamplingParams,
    Scored,
    Sink,
    TokenLogprob,
)
from gpupool.errors import BadRequest, EngineError
from gpupool.partition import Slice
from gpupool.settings import Settings
from tests.engines.scripted import ScriptedEngine


def logprob_of(token: int, top: int) -> TokenLogprob:
    best = [TokenLogprob(token - 1, chr(token - 1), 1 - token / 64)]
    best += [TokenLogprob(token + i, chr(token + i), -token / 64 - i) for i in range(top)]
    return TokenLogprob(token, chr(token), -token / 64, tuple(best[:top]))


class Talker(ScriptedEngine):
    """`asked` are the parameters of every generate, in order; `cancelled` the ids of cancels."""

    calls_tools = True

    def __init__(self, settings: Settings, gpu_slice: Slice) -> None:
        super().__init__(settings, gpu_slice)
        self.asked: list[SamplingParams] = []
        self.cancelled: list[str] = []

    def generate(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, sink: Sink
    ) -> None:
        self.asked.append(params)
        if prompt[0] == ord("!"):
            sink(Failed(EngineError("this one fails")))
            return
        answer = bytes(prompt).partition(b"|")[2]
        if not answer:
            super().generate(request_id, prompt, params, self._decorated(params, prompt, sink))
            return
        length = min(params.max_tokens, len(answer))
        short = replace(params, max_tokens=length)
        reason = "stop" if length == len(answer) else "length"
        super().generate(
            request_id, list(answer), short, self._decorated(params, prompt, sink, reason)
        )

    def _decorated(
        self, params: SamplingParams, prompt: Sequence[int], sink: Sink, reason: str = "length"
    ) -> Sink:
        """With log-probabilities, the reason of its end, and the engine's death."""

        def logprobs(tokens: Sequence[int]) -> tuple[TokenLogprob, ...]:
            top = params.logprobs
            return () if top is None else tuple(logprob_of(token, top) for token in tokens)

        def pass_on(event: Event) -> None:
            if isinstance(event, Chunk):
                first = bytes(prompt).decode("utf-8", "replace")[0]
                if first != "‡":
                    sink(replace(event, logprobs=logprobs(event.token_ids)))
                if first in "†‡":
                    self._dead = "it perished"
            elif isinstance(event, Finished):
                (whole,) = event.completions
                wanted = None if params.logprobs is None else logprobs(whole.token_ids)
                sink(Finished((Completion(whole.text, whole.token_ids, reason, wanted),)))
            else:
                sink(event)

        return pass_on

    def score(self, request_id: str, prompt: Sequence[int], sink: Sink, top: int = 0) -> None:
        found = [logprob_of(token, top) for token in prompt[1:]]
        best = tuple(token.top for token in found) if top else ()
        sink(Scored(tuple(token.logprob for token in found), best))

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)
        super().cancel(request_id)

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        options: Mapping[str, Any],
    ) -> list[int]:
        """The names of the tools, the template's variables, and then the contents."""
        if messages[0]["role"] == "tool":
            raise BadRequest("a conversation cannot begin so", param="messages")
        told = [tool["function"]["name"] for tool in tools or ()]
        told += [f"{name}={value}" for name, value in options.items()]
        return list("/".join((*told, *(m["content"] for m in messages))).encode())

    def embed(self, request_id: str, prompt: Sequence[int], sink: Sink) -> None:
        sink(Embedded((float(len(prompt)), float(prompt[0]))))
