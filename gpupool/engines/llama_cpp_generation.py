"""One sequence that llama.cpp generates, from its events to ours (worker, the engine's loop)."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from gpupool.engines.base import Chunk, Completion, Finished, SamplingParams, TokenLogprob
from gpupool.engines.llama_cpp_client import Json, LlamaClient
from gpupool.engines.llama_cpp_scoring import Scorer
from gpupool.engines.llama_cpp_segment import Segment, check_combination, plan_segment
from gpupool.engines.llama_cpp_slots import Slot
from gpupool.engines.llama_cpp_vocabulary import Vocabulary
from gpupool.engines.outlet import Outlet
from gpupool.engines.stop import StopFinder


class Generation:
    """From the prompt to the completion.

    A completion that reaches its length within a character ends before that character.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        vocabulary: Vocabulary,
        outlet: Outlet,
        note_progress: Callable[[], None],
    ) -> None:
        self.prompt = list(prompt)
        self.params = params
        self._vocabulary = vocabulary
        self._outlet = outlet
        self._note_progress = note_progress
        self._seed = secrets.randbits(64) if params.seed is None else params.seed
        self._stops = StopFinder(params.stop)
        self._kept_special = (
            ()
            if params.skip_special_tokens
            else tuple(vocabulary.text(token) for token in sorted(vocabulary.control))
        )
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._text: list[str] = []
        self._special = ""  # of the last token: an end token's text is not part of the completion
        self._reason: str | None = None

    async def run(self, client: LlamaClient, scorer: Scorer, slot: Slot) -> Finished:
        """Send chunks until the sequence is complete."""
        check_combination(self.params)
        while self._reason is None and len(self._tokens) < self.params.max_tokens:
            segment = plan_segment(
                self.prompt, self._tokens, self.params, self._seed, self._kept_special
            )
            segment.body["id_slot"] = slot.number
            await self._run_segment(segment, client.stream(segment.body), scorer, slot)
            slot.key = (*self.prompt, *self._tokens)
        if self._reason is None:
            self._give(self._special + self._stops.flush())
        logprobs = None if self.params.logprobs is None else tuple(self._logprobs)
        completion = Completion(
            "".join(self._text), tuple(self._tokens), self._reason or "length", logprobs
        )
        return Finished((completion,))

    async def _run_segment(
        self, segment: Segment, events: AsyncGenerator[Json], scorer: Scorer, slot: Slot
    ) -> None:
        before = len(self._tokens)
        async with aclosing(events):
            async for event in events:
                self._note_progress()
                if "prompt_progress" in event:
                    continue
                if event["stop"]:
                    self._end_segment(event)
                    return
                num_new = before + event["tokens_predicted"] - len(self._tokens)
                tokens = self._tokens_of(event, num_new)
                if len(tokens) > 1 and self.params.logprobs is not None:
                    break
                self._take(tokens, event["content"], self._logprob_of(event))
                if self._reason or segment.ends_with(len(self._tokens), tokens[-1]):
                    return
            else:
                return
        await self._take_scored(tokens, event, scorer, slot)

    async def _take_scored(
        self, tokens: list[int], event: Json, scorer: Scorer, slot: Slot
    ) -> None:
        """llama.cpp gave no log-probabilities for all but the last token of this character."""
        num_top = self.params.logprobs or 0
        found = []
        for place, token in enumerate(tokens[:-1]):
            before = [*self.prompt, *self._tokens, *tokens[:place]]
            found.append(await scorer.score_token(before, token, num_top, slot))
        self._take(tokens, event["content"], (*found, *self._logprob_of(event)))

    def _end_segment(self, event: Json) -> None:
        if event["stop_type"] == "eos" and self.params.ignore_eos:
            return  # The next segment goes on behind the end token.
        if event["stop_type"] == "eos":
            self._special, self._reason = "", "stop"
        else:
            self._reason = "length"
        self._give(self._special + self._stops.flush())
        self._special = ""

    def _tokens_of(self, event: Json, num_new: int) -> list[int]:
        """The event's token, and those in front of it that left its character unfinished."""
        last: int = event["tokens"][0]
        if num_new <= 1:
            return [last]
        return [*self._vocabulary.split(event["content"].encode(), last, num_new - 1), last]

    def _logprob_of(self, event: Json) -> tuple[TokenLogprob, ...]:
        if self.params.logprobs is None:
            return ()
        text = self._vocabulary.text
        found = event["completion_probabilities"][0]
        top = tuple(
            TokenLogprob(entry["id"], text(entry["id"]), entry["logprob"])
            for entry in found["top_logprobs"][: self.params.logprobs]
        )
        return (TokenLogprob(found["id"], text(found["id"]), found["logprob"], top),)

    def _take(self, tokens: list[int], text: str, logprobs: tuple[TokenLogprob, ...]) -> None:
        self._tokens += tokens
        self._logprobs += logprobs
        is_enough = len(self._tokens) >= self.params.min_tokens
        if is_enough and tokens[-1] in self.params.stop_token_ids:
            self._give(self._special + self._stops.flush(), tokens, logprobs)
            self._reason = "stop"
            return
        # Text of a special token waits for the next token: only then is it no end token.
        text, self._special = self._special + text, ""
        if text and tokens[-1] in self._vocabulary.control:
            text, self._special = "", text
        if is_enough and self.params.stop:
            text, is_stopped = self._stops.push(text)
            if is_stopped:
                self._special, self._reason = "", "stop"
        self._give(text, tokens, logprobs)

    def _give(
        self, text: str, tokens: Sequence[int] = (), logprobs: tuple[TokenLogprob, ...] = ()
    ) -> None:
        self._text.append(text)
        if text or tokens:
            self._outlet.send(Chunk(text, tuple(tokens), logprobs))
