"""Forward passes beside the batch: scores, vectors, beam searches (worker, thread of `Beside`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpupool.engines import beams, scoring
from gpupool.engines.base import (
    Completion,
    Embedded,
    Finished,
    SamplingParams,
    Scored,
    TokenLogprob,
)
from gpupool.engines.beside import Check, Job
from gpupool.engines.embedding import embed_prompts
from gpupool.engines.sampling import TopLogprobs
from gpupool.engines.sequence import name_logprob
from gpupool.engines.transformers_text import ModelText

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Passes:
    """On the twin of the model that the batch runs."""

    def __init__(self, twin: PreTrainedModel, text: ModelText) -> None:
        self.twin = twin
        self._text = text

    def score(self, jobs: Sequence[Job], check: Check) -> list[Scored]:
        """The prompts of several requests together."""
        most = max(job.num_top for job in jobs)
        found = scoring.score_prompts(self.twin, [job.prompt for job in jobs], most, check)
        return [self._scored(rows, job.num_top) for job, rows in zip(jobs, found, strict=True)]

    def _scored(self, rows: Sequence[TopLogprobs], num_top: int) -> Scored:
        text = self._text.token_text
        best = tuple(
            tuple(
                TokenLogprob(token, text(token), value)
                for token, value in zip(ids[:num_top], values[:num_top], strict=True)
            )
            for _, ids, values in rows
        )
        return Scored(tuple(own for own, _, _ in rows), best if num_top else ())

    def embed(self, jobs: Sequence[Job], check: Check) -> list[Embedded]:
        """The prompts of several requests together."""
        prompts = [job.prompt for job in jobs]
        return [Embedded(vector) for vector in embed_prompts(self.twin, prompts, check)]

    def search(self, prompt: list[int], params: SamplingParams, check: Check) -> Finished:
        """One beam search."""
        ends, decode = self._text.ends(params), self._text.decoder(params)
        found = beams.search_beams(self.twin, prompt, params, ends, decode, check)
        return Finished(tuple(self._complete(prompt, beam, params, check) for beam in found))

    def _complete(
        self, prompt: list[int], tokens: list[int], params: SamplingParams, check: Check
    ) -> Completion:
        ends, decode = self._text.ends(params), self._text.decoder(params)
        text, is_stopped = beams.render(tokens, params, ends, decode)
        logprobs: tuple[TokenLogprob, ...] | None = None
        if params.logprobs is not None:
            rows = scoring.top_logprobs(
                self.twin, [*prompt, *tokens], len(prompt), params.logprobs, check
            )
            logprobs = tuple(
                name_logprob(token, row, self._text.token_text)
                for token, row in zip(tokens, rows, strict=True)
            )
        return Completion(text, tuple(tokens), "stop" if is_stopped else "length", logprobs)
