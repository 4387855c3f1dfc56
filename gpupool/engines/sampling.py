"""Choosing the next token of every sequence in a batch, each by its own parameters.

Runs in the worker process, on the thread of transformers' continuous batching, which knows only
temperature, top_k and top_p and has one seed for all. Here each sequence brings its own random
numbers, so that a seed means the same text alone and among others.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpupool.engines.base import SamplingParams
from gpupool.errors import EngineError

if TYPE_CHECKING:
    import torch

    from gpupool.engines.guides import Guide

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 32  # bounds the temporary memory: a row is a whole vocabulary in 64-bit floats
HEAD_TOKENS = 512  # top_p is looked for among so many best tokens before all are sorted

TopLogprobs = tuple[float, list[int], list[float]]
"""The chosen token's log-probability, then ids and log-probabilities of the best."""


class Draw:
    """The sampling state of one sequence; written by the batch thread only."""

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        end_tokens: Sequence[int],
        guide: Guide | None = None,
    ) -> None:
        self.params = params
        self._guide = guide
        self.error: EngineError | None = None
        self.logprobs: list[TopLogprobs] = []  # one per token, if params.logprobs is not None
        self._num_tokens = 0
        # random.Random takes the absolute value of a seed; modulo keeps -5 and 5 apart.
        seed = None if params.seed is None else params.seed % (1 << 64)
        self._random = random.Random(seed)
        self._prompt = prompt
        self._end_tokens = list(end_tokens)
        self._seen: torch.Tensor | None = None
        self._counts: torch.Tensor | None = None

    def next_uniform(self) -> float:
        """The sequence's next random number in [0, 1)."""
        return self._random.random()

    @property
    def is_plain(self) -> bool:
        """Whether `edit` has nothing to do at this token."""
        params = self.params
        return (
            not params.logit_bias
            and self._guide is None
            and self._num_tokens >= params.min_tokens
            and params.repetition_penalty == 1.0
            and not (params.frequency_penalty or params.presence_penalty)
        )

    def edit(self, row: torch.Tensor) -> None:
        """Apply bias, min_tokens, penalties and the grammar to the logits of one position, in
        place."""
        if self.is_plain:
            return
        params = self.params
        self._make_tallies(row)
        if params.logit_bias:
            row[list(params.logit_bias)] += row.new_tensor(list(params.logit_bias.values()))
        if self._num_tokens < params.min_tokens:
            row[self._end_tokens] = float("-inf")
        if self._seen is not None:
            penalty = params.repetition_penalty
            penalized = row.where(row <= 0, row / penalty).where(row > 0, row * penalty)
            row.copy_(penalized.where(self._seen, row))
        if self._counts is not None:
            row -= params.frequency_penalty * self._counts
            row -= params.presence_penalty * (self._counts > 0)
        if self._guide is not None:
            self._guide.restrict(row)

    def _make_tallies(self, row: torch.Tensor) -> None:
        """Made at the first token, on the device of the logits, and only where they are needed."""
        params = self.params
        if params.repetition_penalty != 1.0 and self._seen is None:
            self._seen = row.new_zeros(row.shape).bool()
            self._seen[list(self._prompt)] = True
        if (params.frequency_penalty or params.presence_penalty) and self._counts is None:
            self._counts = row.new_zeros(row.shape)

    def add(self, token: int) -> None:
        """Remember the chosen token."""
        self._num_tokens += 1
        if self._guide is not None and not self._guide.take(token):
            self.error = EngineError("no token of the model fits the grammar here")
        if self._seen is not None:
            self._seen[token] = True
        if self._counts is not None:
            self._counts[token] += 1

    def edit_after(self, row: torch.Tensor, tokens: Sequence[int]) -> None:
        """What `edit` does after these tokens, for a fresh state (a beam has no state to keep)."""
        self._make_tallies(row)
        for token in tokens:
            self.add(token)
        self.edit(row)


def choose_tokens(scores: torch.Tensor, draws: Sequence[Draw | None]) -> None:
    """Rewrite the logits [rows, vocabulary] so that each row's highest is the token chosen.

    Row i belongs to draws[i]; None is a sequence that is over. A row that cannot be sampled
    from puts its error into its draw and disturbs no other.
    """
    for start in range(0, len(draws), ROWS_AT_ONCE):
        part = draws[start : start + ROWS_AT_ONCE]
        _choose(scores[start : start + len(part)], part)


def _choose(scores: torch.Tensor, draws: Sequence[Draw | None]) -> None:
    finite = scores.amax(-1).isfinite().tolist()
    rows = []
    for row, draw in enumerate(draws):
        if draw is None or draw.error is not None:
            continue
        if finite[row]:
            rows.append(row)
        else:
            draw.error = EngineError("the model's output for this request is not a number")
    live = {row: draw for row in rows if (draw := draws[row]) is not None}
    raw = _raw_logprobs(scores, live)
    for row, draw in live.items():
        try:
            draw.edit(scores[row])
        except Exception:
            log.exception("sampling parameters could not be applied")
            draw.error = EngineError("the sampling parameters could not be applied")
    sampled = [row for row, draw in live.items() if draw.params.temperature > 0]
    if sampled:
        _sample(scores, sampled, [live[row] for row in sampled])
    tokens = scores.argmax(-1).tolist()
    for row, draw in live.items():
        draw.add(tokens[row])
    _record_logprobs(raw, live, tokens)


def _raw_logprobs(scores: torch.Tensor, live: dict[int, Draw]) -> tuple[list[int], torch.Tensor]:
    """Log-probabilities before any edit, of the rows that asked for them."""
    rows = [row for row, draw in live.items() if draw.params.logprobs is not None]
    return rows, scores[rows].float().log_softmax(-1)


def _record_logprobs(
    raw: tuple[list[int], torch.Tensor], live: dict[int, Draw], tokens: list[int]
) -> None:
    rows, logprobs = raw
    if not rows:
        return
    k = max(live[row].params.logprobs or 0 for row in rows)
    chosen = logprobs.gather(-1, logprobs.new_tensor([[tokens[row]] for row in rows]).long())
    best = logprobs.topk(min(k, logprobs.shape[-1]))
    for row, own, values, ids in zip(
        rows, chosen[:, 0].tolist(), best.values.tolist(), best.indices.tolist(), strict=True
    ):
        wanted = live[row].params.logprobs or 0
        live[row].logprobs.append((own, ids[:wanted], values[:wanted]))


def _sample(scores: torch.Tensor, rows: list[int], draws: list[Draw]) -> None:
    """Draw a token for each of the rows and make it the row's highest."""
    import torch

    logits = scores[rows]
    temperature = logits.new_tensor([[draw.params.temperature] for draw in draws])
    # The highest is subtracted first, so that a small temperature cannot overflow.
    probs = ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)
    _cut_tail(probs, draws)
    # In the order of the vocabulary and in 64 bits: the rounding of a batch, which may swap two
    # nearly equal tokens in a sorted order, moves these sums by next to nothing.
    sums = probs.double().cumsum(-1)
    uniform = sums.new_tensor([[draw.next_uniform()] for draw in draws])
    chosen = torch.searchsorted(sums, uniform * sums[:, -1:], right=True)
    chosen.clamp_(max=probs.shape[-1] - 1)
    probs.fill_(0).scatter_(-1, chosen, 1)
    scores[rows] = probs


def _cut_tail(probs: torch.Tensor, draws: list[Draw]) -> None:
    """Zero what min_p, then top_k, then top_p leave out, in place; ties stay in."""
    lowest = probs.amax(-1) * probs.new_tensor([draw.params.min_p for draw in draws])
    vocabulary = probs.shape[-1]
    ranked = [
        row
        for row, draw in enumerate(draws)
        if draw.params.top_p < 1 or 0 < draw.params.top_k < vocabulary
    ]
    if ranked:
        min_p_cut = probs[ranked].masked_fill_(probs[ranked] < lowest[ranked, None], 0)
        lowest[ranked] = _rank_threshold(min_p_cut, [draws[row] for row in ranked])
    probs.masked_fill_(probs < lowest[:, None], 0)


def _rank_threshold(probs: torch.Tensor, draws: list[Draw]) -> torch.Tensor:
    """The probability of the last token that top_k and then top_p keep, per row."""
    vocabulary = probs.shape[-1]
    top_k = probs.new_tensor(
        [
            [min(draw.params.top_k if draw.params.top_k > 0 else vocabulary, vocabulary)]
            for draw in draws
        ]
    ).long()
    top_p = probs.new_tensor([[draw.params.top_p] for draw in draws])
    whole = probs.sum(-1, keepdim=True)
    best = probs.topk(min(HEAD_TOKENS, vocabulary)).values
    within, total = _kept(best, top_k, whole)
    if best.shape[-1] < vocabulary and not bool((within[:, -1:] >= top_p * total).all()):
        best = probs.sort(-1, descending=True).values
        within, total = _kept(best, top_k, whole)
    before = within - best
    ranks = top_k.new_tensor(range(best.shape[-1]))
    keep = (ranks < top_k) & (before < top_p * total)
    last = (keep.sum(-1, keepdim=True) - 1).clamp_(min=0)
    return best.gather(-1, last)[:, 0]


def _kept(
    best: torch.Tensor, top_k: torch.Tensor, whole: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Running sums of the best probabilities, and the sum that top_k leaves of each row."""
    within = best.cumsum(-1)
    last = top_k.clamp(max=best.shape[-1]) - 1
    return within, within.gather(-1, last).where(top_k <= best.shape[-1], whole)
