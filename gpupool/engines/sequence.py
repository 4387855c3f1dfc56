"""One running generation: its tokens become text, chunks and one completion (worker process).

Used by the one thread that collects the batch's results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gpupool.engines.base import (
    Chunk,
    Completion,
    Failed,
    Finished,
    SamplingParams,
    TokenLogprob,
)
from gpupool.engines.detokenizer import Decode, Detokenizer
from gpupool.engines.outlet import Outlet
from gpupool.engines.sampling import Draw, TopLogprobs
from gpupool.engines.stop import StopFinder

if TYPE_CHECKING:
    from gpupool.engines.guides import Guide

TokenText = Callable[[int], str]


class RunningSequence:
    """From the prompt to the completion; `draw` is shared with the thread that samples."""

    def __init__(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        end_tokens: Sequence[int],
        decode: Decode,
        token_text: TokenText,
        outlet: Outlet,
        guide: Guide | None = None,
    ) -> None:
        self.prompt = list(prompt)
        self.params = params
        self.end_tokens = frozenset(end_tokens)
        self.draw = Draw(params, self.prompt, end_tokens, guide)
        self.outlet = outlet
        self._token_text = token_text
        self._detokenizer = Detokenizer(decode, self.prompt)
        self._stops = StopFinder(params.stop)
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._text: list[str] = []

    @property
    def is_over(self) -> bool:
        """Whether nothing more is wanted of this sequence."""
        return self.outlet.is_over

    def take(self, tokens: Sequence[int], is_last: bool) -> None:
        """All tokens so far; ends the request when they are complete."""
        if self.draw.error is not None:
            self.outlet.end(Failed(self.draw.error))
            return
        for token in tokens[len(self._tokens) :]:
            if self.is_over:
                return
            self._take_token(token)
        if is_last and not self.is_over:
            self._give(self._stops.flush())
            self._finish("length")

    def _take_token(self, token: int) -> None:
        self._tokens.append(token)
        logprobs = self._take_logprob(token)
        if token in self.end_tokens:
            self._give(self._stops.flush(), token, logprobs)
            self._finish("stop")
            return
        text, is_stopped = self._detokenizer.push(token), False
        if len(self._tokens) >= self.params.min_tokens:
            text, is_stopped = self._stops.push(text)
        self._give(text, token, logprobs)
        if is_stopped:
            self._finish("stop")

    def _take_logprob(self, token: int) -> tuple[TokenLogprob, ...]:
        if self.params.logprobs is None:
            return ()
        position = len(self._tokens) - 1
        found = name_logprob(token, self.draw.logprobs[position], self._token_text)
        self._logprobs.append(found)
        return (found,)

    def _give(
        self, text: str, token: int | None = None, logprobs: tuple[TokenLogprob, ...] = ()
    ) -> None:
        self._text.append(text)
        tokens = () if token is None else (token,)
        if text or tokens:
            self.outlet.send(Chunk(text, tokens, logprobs))

    def _finish(self, reason: str) -> None:
        logprobs = None if self.params.logprobs is None else tuple(self._logprobs)
        completion = Completion("".join(self._text), tuple(self._tokens), reason, logprobs)
        self.outlet.end(Finished((completion,)))


def name_logprob(token: int, found: TopLogprobs, token_text: TokenText) -> TokenLogprob:
    """The token's log-probability and its best rivals', with their texts."""
    own, ids, values = found
    top = tuple(
        TokenLogprob(other, token_text(other), value)
        for other, value in zip(ids, values, strict=True)
    )
    return TokenLogprob(token, token_text(token), own, top)
