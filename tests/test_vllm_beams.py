"""Beam search on toy models whose every continuation can be enumerated."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest

from gpupool.engines.base import Completion, SamplingParams
from gpupool.engines.vllm_beams import BeamSearch
from gpupool.errors import BadRequest

END = 0
VOCABULARY = 4
PROMPT = (3, 2)


@dataclass(frozen=True)
class Entry:
    logprob: float
    decoded_token: str = "?"


@dataclass
class Toy:
    """A distribution for every prefix, the same in every run."""

    seed: int = 0
    end_weight: float = 1.0
    asked: list[int] = field(default_factory=list)

    def position(self, tokens: Sequence[int]) -> dict[int, Entry]:
        rng = random.Random(f"{self.seed} {tuple(tokens)}")
        weights = [rng.random() + 0.01 for _ in range(VOCABULARY)]
        weights[END] *= self.end_weight
        return {token: Entry(math.log(w / sum(weights))) for token, w in enumerate(weights)}

    async def candidates(self, tokens: list[int], number: int) -> Mapping[int, Any]:
        self.asked.append(len(tokens) - len(PROMPT))
        await asyncio.sleep(0)
        best = sorted(self.position(tokens).items(), key=lambda item: -item[1].logprob)
        return dict(best[:number])

    def search(self, params: SamplingParams, ends: frozenset[int] = frozenset({END})) -> BeamSearch:
        return BeamSearch(PROMPT, params, ends, self.candidates, decode)

    def run(self, params: SamplingParams) -> tuple[Completion, ...]:
        return asyncio.run(self.search(params).run())

    def logprob(self, tokens: Sequence[int]) -> float:
        return sum(
            self.position([*PROMPT, *tokens[:i]])[token].logprob for i, token in enumerate(tokens)
        )

    def best(self, max_tokens: int, length_penalty: float) -> tuple[int, ...]:
        """By looking at all there are."""
        whole = [
            tokens
            for length in range(1, max_tokens + 1)
            for tokens in product(range(VOCABULARY), repeat=length)
            if END not in tokens[:-1] and (tokens[-1] == END or length == max_tokens)
        ]
        return max(whole, key=lambda tokens: self.logprob(tokens) / len(tokens) ** length_penalty)


def decode(tokens: Sequence[int], skip_special_tokens: bool) -> str:
    return "".join("_abc"[token] for token in tokens)


def wide(**changes: Any) -> SamplingParams:
    params = {"max_tokens": 4, "beam_width": 128, "early_stopping": "never"}
    return SamplingParams(**{**params, **changes})


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_beam_as_wide_as_the_tree_finds_the_best_text(seed: int, length_penalty: float) -> None:
    toy = Toy(seed)
    found = toy.run(wide(length_penalty=length_penalty))[0]
    assert found.token_ids == toy.best(4, length_penalty)


def test_a_beam_of_one_is_the_greedy_text() -> None:
    toy = Toy(seed=3, end_weight=0.0001)
    greedy: list[int] = []
    for _ in range(6):
        position = toy.position([*PROMPT, *greedy])
        greedy.append(max(position, key=lambda token: position[token].logprob))
    assert toy.run(SamplingParams(max_tokens=6))[0].token_ids == tuple(greedy)


def test_as_many_texts_as_asked_for_come_back_best_first() -> None:
    toy = Toy(seed=1)
    params = wide(beam_width=6, num_beams_returned=4, length_penalty=0.7)
    scores = [toy.logprob(c.token_ids) / len(c.token_ids) ** 0.7 for c in toy.run(params)]
    assert len(scores) == 4
    assert scores == sorted(scores, reverse=True)


@dataclass
class Constant(Toy):
    """The same probabilities after every prefix; the end's is the first."""

    weights: tuple[float, ...] = ()

    def position(self, tokens: Sequence[int]) -> dict[int, Entry]:
        return {token: Entry(math.log(weight)) for token, weight in enumerate(self.weights)}

    def num_steps(self, **params: Any) -> int:
        self.asked.clear()
        self.run(SamplingParams(max_tokens=10, **params))
        return max(self.asked) + 1


def test_early_stopping_ends_with_the_first_full_set_of_texts() -> None:
    # One text ends with each of the first two steps, and what runs is worth more than the worst.
    toy = Constant(weights=(0.3, 0.45, 0.25))
    wanted = {"beam_width": 2, "length_penalty": 2.0}
    steps = [toy.num_steps(**wanted, early_stopping=flag) for flag in (True, False)]
    assert steps[0] == 2
    assert steps[1] > 2


def test_never_stopping_early_counts_with_the_longest_text() -> None:
    toy = Constant(weights=(0.5, 0.3, 0.2))
    steps = [toy.num_steps(beam_width=1, early_stopping=f) for f in (False, "never")]
    assert steps[0] == 1
    assert steps[1] > 1


def test_a_search_ends_when_what_runs_cannot_beat_what_has_finished() -> None:
    toy = Toy(end_weight=20)
    toy.run(SamplingParams(max_tokens=500, beam_width=2, length_penalty=0.0))
    assert max(toy.asked) < 50


def test_the_text_leaves_the_end_token_out_and_the_tokens_keep_it() -> None:
    toy = Toy(end_weight=1000)
    found = toy.run(SamplingParams(max_tokens=5, beam_width=2, early_stopping=True))[0]
    assert (found.text, found.token_ids, found.finish_reason) == ("", (END,), "stop")


def test_no_text_is_shorter_than_min_tokens() -> None:
    toy = Toy(end_weight=1000)
    found = toy.run(wide(max_tokens=6, min_tokens=4, beam_width=3, num_beams_returned=3))
    assert min(len(c.token_ids) for c in found) >= 4


def test_a_stop_string_ends_a_beam_and_is_cut_off() -> None:
    toy = Toy(end_weight=0.0001)
    plain = toy.run(SamplingParams(max_tokens=6, beam_width=1))[0].text
    params = SamplingParams(max_tokens=6, beam_width=1, early_stopping=True, stop=(plain[2:4],))
    found = toy.run(params)[0]
    assert (found.text, found.finish_reason) == (plain[: plain.index(plain[2:4])], "stop")


def test_without_end_tokens_every_text_has_full_length() -> None:
    toy = Toy(end_weight=1000)
    search = toy.search(SamplingParams(max_tokens=5, beam_width=2), ends=frozenset())
    found = asyncio.run(search.run())
    assert [(len(c.token_ids), c.finish_reason) for c in found] == [(5, "length")]


def test_log_probabilities_are_those_of_the_returned_tokens() -> None:
    toy = Toy(seed=2)
    found = toy.run(wide(logprobs=1))[0]
    assert found.logprobs is not None
    assert [entry.token_id for entry in found.logprobs] == list(found.token_ids)
    assert sum(e.logprob for e in found.logprobs) == pytest.approx(toy.logprob(found.token_ids))


def test_a_cancelled_search_stops_what_it_has_asked_for() -> None:
    stopped: list[bool] = []

    async def endless(tokens: list[int], number: int) -> Mapping[int, Any]:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(True)
        return {}

    async def scenario() -> None:
        search = BeamSearch(PROMPT, SamplingParams(max_tokens=3), frozenset(), endless, decode)
        task = asyncio.create_task(search.run())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(scenario())
    assert stopped == [True]


@pytest.mark.parametrize(
    "changes",
    [
        {"presence_penalty": 1.0},
        {"frequency_penalty": 1.0},
        {"repetition_penalty": 1.2},
        {"logit_bias": {1: 5.0}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_a_beam_search_does_not_apply_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=next(iter(changes))):
        Toy().run(SamplingParams(**changes))
