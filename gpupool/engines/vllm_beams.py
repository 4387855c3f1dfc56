"""Beam search over an engine that names the best next tokens of a prompt (worker; pure).

vLLM's own runs to max_tokens whatever has finished, and divides by the length of the prompt too;
this one keeps the definitions of transformers' `generate(num_beams=...)`. Imports no vLLM.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpupool.engines.base import Completion, SamplingParams
from gpupool.engines.vllm_sampling import to_token_logprob
from gpupool.errors import BadRequest

Candidates = Callable[[list[int], int], Awaitable[Mapping[int, Any]]]
"""The best next tokens after these ones: token id -> an object with `logprob`."""

Decode = Callable[[Sequence[int], bool], str]
"""Token ids -> text, without special tokens or with them."""


@dataclass(frozen=True, slots=True)
class Beam:
    """A continuation of the prompt and the sum of its tokens' log-probabilities."""

    tokens: tuple[int, ...] = ()
    logprob: float = 0.0
    positions: tuple[Mapping[int, Any], ...] = ()
    finish_reason: str = "length"
    text: str | None = None  # set where a stop string cut it

    def extend(self, token: int, position: Mapping[int, Any]) -> Beam:
        """This beam and one token more."""
        logprob = self.logprob + position[token].logprob
        return Beam((*self.tokens, token), logprob, (*self.positions, position))


@dataclass(frozen=True, slots=True)
class BeamSearch:
    """One search. `end_tokens` are those that end a text; `decode` is only for the results."""

    prompt: Sequence[int]
    params: SamplingParams
    end_tokens: frozenset[int]
    candidates: Candidates
    decode: Decode

    async def run(self) -> tuple[Completion, ...]:
        """num_beams_returned completions, the best first; cancelling it stops its requests."""
        refuse_unused(self.params)
        running, finished = [Beam()], list[Beam]()
        while running and len(running[0].tokens) < self.params.max_tokens:
            running, ended = await self._step(running)
            finished = self._best([*finished, *ended])
            if self._is_done(running, finished):
                running = []
        best = self._best([*finished, *running])[: self.params.num_beams_returned]
        return tuple(self._complete(beam) for beam in best)

    async def _step(self, running: Sequence[Beam]) -> tuple[list[Beam], list[Beam]]:
        """Grow every beam by every candidate: those that go on, and those that ended."""
        width = self.params.beam_width
        positions = await asyncio.gather(*map(self._ask, running))
        grown = [
            beam.extend(token, position)
            for beam, position in zip(running, positions, strict=True)
            for token in position
        ]
        grown.sort(key=lambda beam: -beam.logprob)
        alive, ended = list[Beam](), list[Beam]()
        for rank, beam in enumerate(grown[: 2 * width]):
            if len(alive) == width:
                break
            over = self._end(beam)
            if over is None:
                alive.append(beam)
            elif rank < width and not self._is_early(over):
                ended.append(over)
        return alive, ended

    async def _ask(self, beam: Beam) -> Mapping[int, Any]:
        return await self.candidates([*self.prompt, *beam.tokens], 2 * self.params.beam_width)

    def _end(self, beam: Beam) -> Beam | None:
        """The finished form of a beam whose last token ends it."""
        if beam.tokens[-1] in self.end_tokens:
            return replace(beam, finish_reason="stop")
        if not self.params.stop or self._is_early(beam):
            return None
        text = self.decode(beam.tokens, self.params.skip_special_tokens)
        found = [at for at in map(text.find, self.params.stop) if at >= 0]
        return replace(beam, finish_reason="stop", text=text[: min(found)]) if found else None

    def _is_early(self, beam: Beam) -> bool:
        return len(beam.tokens) < self.params.min_tokens

    def _is_done(self, running: Sequence[Beam], finished: Sequence[Beam]) -> bool:
        """Whether what still runs can not, or need not, beat what has finished."""
        params = self.params
        if not running or len(finished) < params.beam_width:
            return False
        if params.early_stopping is True:
            return True
        longest = params.early_stopping == "never" and params.length_penalty > 0
        length = params.max_tokens if longest else len(running[0].tokens)
        hope = float(running[0].logprob / length**params.length_penalty)
        return self._score(finished[-1]) >= hope

    def _score(self, beam: Beam) -> float:
        return float(beam.logprob / len(beam.tokens) ** self.params.length_penalty)

    def _best(self, beams: Sequence[Beam]) -> list[Beam]:
        return sorted(beams, key=self._score, reverse=True)[: self.params.beam_width]

    def _complete(self, beam: Beam) -> Completion:
        text = beam.text
        if text is None:
            shown = beam.tokens if beam.finish_reason == "length" else beam.tokens[:-1]
            text = self.decode(shown, self.params.skip_special_tokens)
        logprobs = None
        if self.params.logprobs is not None:
            count = self.params.logprobs
            logprobs = tuple(
                to_token_logprob(token, position, count)
                for token, position in zip(beam.tokens, beam.positions, strict=True)
            )
        return Completion(text, beam.tokens, beam.finish_reason, logprobs)


def refuse_unused(params: SamplingParams) -> None:
    """BadRequest for what changes the distribution, which a beam search here takes as it is."""
    neutral = SamplingParams()
    names = ("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias")
    for name in names:
        if getattr(params, name) != getattr(neutral, name):
            raise BadRequest(
                f"{name} has no effect in vLLM's beam search; leave it out", param=name
            )
