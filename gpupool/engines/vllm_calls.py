"""What is asked of vLLM's client: generate, score, beam search, warm-up (the engine's loop).

Everything here runs on the event loop of the client. Imports vLLM only inside functions.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from itertools import count
from typing import Any

from gpupool.engines import vllm_sampling as sampling
from gpupool.engines.base import (
    Chunk,
    Completion,
    Finished,
    ModelInfo,
    SamplingParams,
    Scored,
    TokenLogprob,
)
from gpupool.engines.vllm_beams import BeamSearch

WARM_UP_TOKENS = 8

Emit = Callable[[Chunk], None]


class Calls:
    """The calls of one client. Cancelling a call stops it inside vLLM within one step."""

    def __init__(self, client: Any, model: ModelInfo) -> None:
        self._client = client
        self._model = model
        self._beam_ids = count()
        self._end_tokens = _end_tokens(client)

    async def generate(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, emit: Emit
    ) -> Finished:
        """One sequence; its tokens include the end token, its text does not."""
        text: list[str] = []
        tokens: list[int] = []
        logprobs: list[TokenLogprob] = []
        reason = "length"
        outputs = self._outputs(request_id, prompt, sampling.to_vllm(params))
        async with aclosing(outputs):
            async for output in outputs:
                ids = tuple(output.token_ids)
                values = sampling.to_token_logprobs(ids, output.logprobs, params.logprobs)
                text.append(output.text)
                tokens += ids
                logprobs += values
                reason = output.finish_reason or reason
                if output.text or ids:
                    emit(Chunk(output.text, ids, values))
        wanted = None if params.logprobs is None else tuple(logprobs)
        return Finished((Completion("".join(text), tuple(tokens), reason, wanted),))

    async def score(self, request_id: str, prompt: Sequence[int], top: int = 0) -> Scored:
        """Each prompt token's own value, and the best at its place. A prompt that fills the
        context, to which vLLM cannot add the token it insists on, is scored without its last one,
        which is then looked up."""
        if len(prompt) < 2:
            return Scored(())
        fills = len(prompt) == self._model.context_tokens
        head = prompt[:-1] if fills else prompt
        result = await self._result(request_id, head, sampling.to_score(top))
        positions = result.prompt_logprobs[1:]
        if fills:
            positions = [*positions, await self._look_up(request_id, prompt, top)]
        found = [
            sampling.to_token_logprob(token, position, top)
            for token, position in zip(prompt[1:], positions, strict=True)
        ]
        best = tuple(token.top for token in found) if top else ()
        return Scored(tuple(token.logprob for token in found), best)

    async def _look_up(self, request_id: str, prompt: Sequence[int], top: int) -> Mapping[int, Any]:
        """The prompt's last token, and the best at its place."""
        *head, last = prompt
        result = await self._result(request_id, head, sampling.to_score_next(last))
        position: dict[int, Any] = dict(result.outputs[0].logprobs[0])
        if top:
            result = await self._result(request_id, head, sampling.to_candidates(top))
            position |= result.outputs[0].logprobs[0]
        return position

    async def beam_search(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams
    ) -> Finished:
        """One request of vLLM's per beam and token, which its prefix cache makes cheap."""
        vocabulary = self._model.vocab_size

        async def candidates(tokens: list[int], number: int) -> Mapping[int, Any]:
            wanted = sampling.to_candidates(min(number, vocabulary))
            result = await self._result(f"{request_id}-{next(self._beam_ids)}", tokens, wanted)
            position: Mapping[int, Any] = result.outputs[0].logprobs[0]
            return position

        def decode(tokens: Sequence[int], skip_special_tokens: bool) -> str:
            tokenizer = self._client.get_tokenizer()
            return str(tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens))

        ends = frozenset(params.stop_token_ids)
        ends |= frozenset() if params.ignore_eos else self._end_tokens
        search = BeamSearch(prompt, params, ends, candidates, decode)
        return Finished(await search.run())

    async def warm_up(self, token: int, scored_tokens: int) -> None:
        """Run every path once: kernels are compiled on first use, which took 17 s for prompt
        log-probabilities on a CPU."""
        prompt = [token] * min(WARM_UP_TOKENS, self._model.context_tokens // 2)
        greedy = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
        seeded = SamplingParams(
            max_tokens=2, top_p=0.9, top_k=50, min_p=0.01, seed=1, logprobs=1, ignore_eos=True,
            presence_penalty=0.1, frequency_penalty=0.1, repetition_penalty=1.1,
            logit_bias={token: 1.0},
        )  # fmt: skip
        await self.generate("warm-up-greedy", prompt, greedy, _drop)
        await self.generate("warm-up-seeded", prompt, seeded, _drop)
        await self.score("warm-up-score", [token] * scored_tokens, top=1)
        await self._result("warm-up-candidates", prompt, sampling.to_candidates(2))

    async def _result(self, request_id: str, prompt: Sequence[int], params: Any) -> Any:
        """The last output of a request."""
        async with aclosing(self._requests(request_id, prompt, params)) as results:
            return [result async for result in results][-1]

    async def _outputs(
        self, request_id: str, prompt: Sequence[int], params: Any
    ) -> AsyncGenerator[Any, None]:
        async with aclosing(self._requests(request_id, prompt, params)) as results:
            async for result in results:
                yield result.outputs[0]

    async def _requests(
        self, request_id: str, prompt: Sequence[int], params: Any
    ) -> AsyncGenerator[Any, None]:
        """vLLM's outputs of one request. What ends early leaves nothing behind: vLLM registers a
        request before it hands it to its engine, and forgets to take it back if that fails."""
        from vllm.inputs import tokens_input

        client, finished = self._client, False
        try:
            async for result in client.generate(tokens_input(list(prompt)), params, request_id):
                finished = result.finished
                if result.outputs[0].finish_reason in ("abort", "error"):
                    raise sampling.unforeseen()
                yield result
        finally:
            if not finished:
                await client.abort(request_id)


def _end_tokens(client: Any) -> frozenset[int]:
    """The tokenizer's end token and those of the model's generation_config.json."""
    listed = client.model_config.try_get_generation_config().get("eos_token_id")
    several = listed if isinstance(listed, list) else [listed]
    ends = {client.get_tokenizer().eos_token_id, *several} - {None}
    return frozenset(int(token) for token in ends)


def _drop(chunk: Chunk) -> None:
    """Nobody reads the warm-up."""
