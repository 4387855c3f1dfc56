"""Exact log-probabilities of given tokens out of llama.cpp (worker process, the engine's loop).

llama.cpp's server returns them only for tokens that it generates. So a token is made certain by
a large bias, which the returned value does not contain: one cached step per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from gpupool.engines.base import Scored, TokenLogprob
from gpupool.engines.llama_cpp_client import Json, LlamaClient
from gpupool.engines.llama_cpp_slots import Slot
from gpupool.engines.llama_cpp_vocabulary import Vocabulary
from gpupool.errors import EngineError

CERTAIN = 1000.0  # as a bias: beyond any difference between two logits
NUM_RIVALS = 8
PAIR_BIAS = 200.0  # smaller, as float32 loses digits with the size
PAIR_LEAD = 15.0  # e**-15: how improbable it is that the wrong one of a pair is generated


class Scorer:
    """Scores on one engine; `note_progress` is called after every step."""

    def __init__(
        self, client: LlamaClient, vocabulary: Vocabulary, note_progress: Callable[[], None]
    ) -> None:
        self._client = client
        self._vocabulary = vocabulary
        self._note_progress = note_progress
        # Any token that is a character of its own serves as the pair's other half.
        self._other = next(
            token
            for token in range(len(vocabulary))
            if token not in vocabulary.control and vocabulary.piece(token).isalpha()
        )

    async def score(self, prompt: Sequence[int], num_top: int, slot: Slot) -> Scored:
        """One value per token after the first, and the best tokens at its place."""
        found = []
        for end in range(1, len(prompt)):
            found.append(await self.score_token(prompt[:end], prompt[end], num_top, slot))
        best = tuple(token.top for token in found) if num_top else ()
        return Scored(tuple(token.logprob for token in found), best)

    async def score_token(
        self, before: Sequence[int], token: int, num_top: int, slot: Slot
    ) -> TokenLogprob:
        """One token's value behind `before`, and its best rivals."""
        if not self._vocabulary.ends_within_character(token):
            found = await self._force(before, {token: CERTAIN}, max(num_top, 1), slot)
            return TokenLogprob(
                token, self._vocabulary.text(token), found["logprob"], self._top(found, num_top)
            )
        # llama.cpp returns nothing for a token that leaves a character unfinished: another one
        # is generated, and this one is found among its rivals or compared with it.
        other = await self._force(before, {self._other: CERTAIN}, max(num_top, NUM_RIVALS), slot)
        rivals = {entry["id"]: entry["logprob"] for entry in other["top_logprobs"]}
        value = rivals.get(token)
        if value is None:
            value = other["logprob"] + await self._distance(before, token, other["logprob"], slot)
        return TokenLogprob(token, self._vocabulary.text(token), value, self._top(other, num_top))

    async def _distance(
        self, before: Sequence[int], token: int, other_logprob: float, slot: Slot
    ) -> float:
        """How far a token is behind the other one, read off a distribution of the two."""
        lead = PAIR_LEAD - other_logprob
        biases = {token: PAIR_BIAS, self._other: PAIR_BIAS + lead}
        pair = await self._force(before, biases, 2, slot, post_sampling_probs=True)
        shares = {entry["id"]: entry["prob"] for entry in pair["top_probs"]}
        if not shares.get(token):
            raise EngineError("a token of this prompt is too improbable for llama.cpp to score")
        return math.log(shares[token] / shares[self._other]) + lead

    async def _force(
        self,
        before: Sequence[int],
        biases: dict[int, float],
        num_probs: int,
        slot: Slot,
        **more: Any,
    ) -> Json:
        answer = await self._client.complete(
            {
                "prompt": list(before),
                "n_predict": 1,
                "id_slot": slot.number,
                "logit_bias": list(biases.items()),
                "samplers": ["top_k"],
                "top_k": len(biases),
                "seed": 0,
                "n_probs": num_probs,
                "response_fields": ["completion_probabilities"],
                **more,
            }
        )
        self._note_progress()
        found: list[Json] = answer.get("completion_probabilities", [])
        if not found or found[0]["id"] != max(biases, key=lambda token: biases[token]):
            raise EngineError("llama.cpp generated another token than the one to be scored")
        return found[0]

    def _top(self, found: Json, num_top: int) -> tuple[TokenLogprob, ...]:
        return tuple(
            TokenLogprob(entry["id"], self._vocabulary.text(entry["id"]), entry["logprob"])
            for entry in found["top_logprobs"][:num_top]
        )
