"""Which token is chosen, on logits made by hand; no model."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch  # noqa: TID253 (no test here runs without it)

from gpupool.engines.base import SamplingParams
from gpupool.engines.sampling import HEAD_TOKENS, Draw, choose_tokens

VOCABULARY = 3 * HEAD_TOKENS


def draw_of(prompt: tuple[int, ...] = (), ends: tuple[int, ...] = (), **params: Any) -> Draw:
    return Draw(SamplingParams(**params), prompt, ends)


def choose(logits: torch.Tensor, draws: list[Draw | None]) -> list[int]:
    scores = logits.clone()
    choose_tokens(scores, draws)
    tokens: list[int] = scores.argmax(-1).tolist()
    return tokens


def logits_of(*best: float) -> torch.Tensor:
    """One row in which token i has the i-th of the logits, and the others next to none."""
    row = torch.full((1, VOCABULARY), -50.0)
    row[0, : len(best)] = torch.tensor(best)
    return row


def noise(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def tokens_of(logits: torch.Tensor, draws: int = 400, **params: Any) -> Counter[int]:
    rows = logits.expand(draws, -1)
    return Counter(choose(rows, [draw_of(seed=seed, **params) for seed in range(draws)]))


def test_greedy_takes_the_highest() -> None:
    logits = noise(5)
    assert choose(logits, [draw_of(temperature=0) for _ in range(5)]) == logits.argmax(-1).tolist()


def test_frequencies_are_the_probabilities() -> None:
    found = tokens_of(logits_of(math.log(0.5), math.log(0.3), math.log(0.2)), draws=4000)
    for token, probability in enumerate((0.5, 0.3, 0.2)):
        assert abs(found[token] / 4000 - probability) < 0.03


def test_temperature_flattens() -> None:
    found = tokens_of(logits_of(2.0, 0.0), draws=4000, temperature=2.0)
    assert abs(found[0] / 4000 - 1 / (1 + math.exp(-1.0))) < 0.03


def test_tiny_temperature_is_the_highest() -> None:
    assert set(tokens_of(noise(1) * 100, temperature=1e-5)) == {int(noise(1).argmax())}


def test_top_k_keeps_k() -> None:
    assert set(tokens_of(logits_of(1.0, 1.1, 1.2, 1.3), top_k=2)) == {2, 3}


def test_top_k_beyond_the_head_keeps_k() -> None:
    """More than the best that are looked at first."""
    k = HEAD_TOKENS + 100
    logits = torch.arange(VOCABULARY, 0, -1, dtype=torch.float32)[None] / VOCABULARY
    kept = set(tokens_of(logits, draws=3000, top_k=k, temperature=10.0))
    assert max(kept) < k
    assert max(kept) > HEAD_TOKENS


def test_top_p_keeps_the_token_that_reaches_it() -> None:
    logits = logits_of(math.log(0.5), math.log(0.3), math.log(0.15), math.log(0.05))
    assert set(tokens_of(logits, top_p=0.7)) == {0, 1}


def test_top_p_counts_only_what_top_k_left() -> None:
    logits = logits_of(math.log(0.4), math.log(0.3), math.log(0.3 - 1e-3))
    assert set(tokens_of(logits, top_p=0.55, top_k=2)) == {0}


def test_top_p_of_a_flat_distribution_is_exact() -> None:
    """Its tokens are far more than the best that are looked at first."""
    logits = torch.linspace(1e-3, 0, VOCABULARY)[None]
    kept = tokens_of(logits, draws=3000, top_p=0.5)
    assert max(kept) <= VOCABULARY // 2 + 1
    assert max(kept) > HEAD_TOKENS


def test_tiny_top_p_is_the_highest() -> None:
    assert set(tokens_of(noise(1), top_p=1e-6)) == {int(noise(1).argmax())}


def test_min_p_is_relative_to_the_best() -> None:
    logits = logits_of(math.log(0.5), math.log(0.3), math.log(0.1), math.log(0.1))
    assert set(tokens_of(logits, min_p=0.4)) == {0, 1}


def test_seed_gives_the_same_tokens_alone_and_among_others() -> None:
    logits = noise(40)
    params: dict[str, Any] = {"top_p": 0.9, "temperature": 1.5, "seed": 7}
    alone = choose(logits[17:18], [draw_of(**params)])
    others: list[Draw | None] = [draw_of(seed=row, top_k=row + 1) for row in range(40)]
    others[17] = draw_of(**params)
    assert choose(logits, others)[17] == alone[0]


def test_seeds_differ() -> None:
    assert len(tokens_of(noise(1), draws=50)) > 10


def test_negative_seed_is_another_seed() -> None:
    rows = noise(1).expand(20, -1)

    def run(seed: int) -> list[int]:
        draw = draw_of(seed=seed)
        return [choose(rows[:1], [draw])[0] for _ in range(20)]

    assert run(-5) != run(5)


def test_without_a_seed_runs_differ() -> None:
    rows = noise(1).expand(30, -1)
    assert choose(rows, [draw_of() for _ in range(30)]) != choose(
        rows, [draw_of() for _ in range(30)]
    )


def test_bias_moves_a_token() -> None:
    assert choose(logits_of(1.0, 0.0), [draw_of(temperature=0, logit_bias={1: 5.0})]) == [1]


def test_end_tokens_wait_for_min_tokens() -> None:
    draw = draw_of(temperature=0, min_tokens=2, ends=(0,))
    assert [choose(logits_of(5.0, 1.0), [draw])[0] for _ in range(3)] == [1, 1, 0]


def test_repetition_penalty_counts_the_prompt() -> None:
    draw = draw_of(prompt=(0,), temperature=0, repetition_penalty=2.0)
    assert choose(logits_of(3.0, 2.0), [draw]) == [1]


def test_repetition_penalty_lowers_negative_logits() -> None:
    draw = draw_of(prompt=(0,), temperature=0, repetition_penalty=2.0)
    assert choose(logits_of(-1.0, -1.5), [draw]) == [1]


def test_presence_penalty_is_for_completion_tokens_once() -> None:
    draw = draw_of(prompt=(0,), temperature=0, presence_penalty=1.5)
    row = logits_of(3.0, 2.0)
    assert [choose(row, [draw])[0] for _ in range(3)] == [0, 1, 0]


def test_frequency_penalty_grows_with_each_use() -> None:
    draw = draw_of(temperature=0, frequency_penalty=0.6)
    row = logits_of(3.0, 2.0)
    assert [choose(row, [draw])[0] for _ in range(4)] == [0, 0, 1, 0]


def test_logprobs_are_raw() -> None:
    draw = draw_of(temperature=0.2, top_k=1, logit_bias={2: 9.0}, logprobs=2)
    logits = logits_of(2.0, 1.0, 0.0)
    assert choose(logits, [draw]) == [2]
    expected = logits.log_softmax(-1)[0]
    own, ids, values = draw.logprobs[0]
    assert own == pytest.approx(expected[2].item(), abs=1e-5)
    assert ids == [0, 1]
    assert values == pytest.approx(expected[:2].tolist(), abs=1e-5)


def test_zero_logprobs_are_the_token_alone() -> None:
    draw = draw_of(temperature=0, logprobs=0)
    choose(logits_of(1.0), [draw])
    assert draw.logprobs[0][1:] == ([], [])


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_row_that_is_no_number_fails_alone(value: float) -> None:
    logits = noise(3)
    logits[1, 5] = value
    draws: list[Draw | None] = [draw_of(seed=row) for row in range(3)]
    choose(logits, draws)
    assert [draw.error is None for draw in draws if draw] == [True, False, True]


def test_parameter_that_cannot_be_applied_fails_alone() -> None:
    draws: list[Draw | None] = [draw_of(temperature=0) for _ in range(2)]
    draws[0] = draw_of(temperature=0, logit_bias={VOCABULARY + 1: 1.0})
    logits = noise(2)
    assert choose(logits, draws)[1] == int(logits[1].argmax())
    assert [draw.error is None for draw in draws if draw] == [False, True]


def test_row_of_nobody_is_left_alone() -> None:
    logits = noise(2)
    assert choose(logits, [None, draw_of(seed=1)])[0] == int(logits[0].argmax())


def test_rows_beyond_the_draws_are_left_alone() -> None:
    """Prompts that are read in several steps have a row and no token yet."""
    logits = noise(3)
    scores = logits.clone()
    choose_tokens(scores, [draw_of(seed=1)])
    assert torch.equal(scores[1:], logits[1:])
