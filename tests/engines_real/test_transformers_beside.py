"""Scores and beam searches of the transformers engine, beside its running batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch  # noqa: TID253 (no test here runs without it)
from transformers import GenerationConfig  # noqa: TID253

from gpupool.engines import scoring
from gpupool.engines.base import Failed, Scored
from gpupool.errors import Cancelled, EngineError
from tests.engines_real.best_tokens import check_best_tokens
from tests.engines_real.transformers_engine import Client, completion_of

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

PROMPT = "The capital of France is Paris, and the capital of Italy is Rome."


@pytest.fixture
def client(transformers_client: Client) -> Client:
    return transformers_client


def forward_logprobs(client: Client, prompt: list[int]) -> list[float]:
    """What one forward pass over the whole prompt gives."""
    with torch.no_grad():
        logits = client.engine._passes.twin(torch.tensor([prompt])).logits[0, :-1]
    wanted = torch.tensor(prompt[1:])[:, None]
    values: list[float] = logits.log_softmax(-1).gather(-1, wanted)[:, 0].tolist()
    return values


def test_score_is_that_of_a_forward_pass(client: Client) -> None:
    prompt = client.tokens(PROMPT)
    assert client.score(prompt) == pytest.approx(forward_logprobs(client, prompt), abs=1e-3)


def test_score_has_a_value_for_each_token_after_the_first(client: Client) -> None:
    assert len(client.score([5, 6, 7])) == 2
    assert client.score([5]) == ()


def test_score_beside_a_running_batch_is_exact(client: Client) -> None:
    prompt = client.tokens(PROMPT)
    alone = client.score(prompt)
    running = [client.start("Once", seed=seed, max_tokens=80, ignore_eos=True) for seed in (1, 2)]
    running[0].next()
    beside = [client.score(prompt) for _ in range(3)]
    unfinished = len(running[0].chunks) < 80
    for answer in running:
        completion_of(answer)
    assert unfinished, "the batch ended first: this proves nothing"
    assert beside == [pytest.approx(alone, abs=1e-5)] * 3


def test_batch_beside_scores_is_undisturbed(client: Client) -> None:
    alone = client.complete("Once upon a time", seed=3, max_tokens=40)
    running = client.start("Once upon a time", seed=3, max_tokens=40)
    for _ in range(4):
        client.score(PROMPT)
    assert completion_of(running) == alone


def test_long_prompt_is_scored_in_pieces(client: Client, monkeypatch: Any) -> None:
    """As a prompt is whose logits would not fit: the pieces see those before them."""
    prompt = client.tokens(PROMPT * 8)
    monkeypatch.setitem(scoring.MAX_LOGITS, "cpu", 20 * client.engine.model.vocab_size)
    steps: list[int] = []
    (found,) = scoring.score_prompts(
        client.engine._passes.twin, [prompt], 0, lambda: steps.append(1)
    )
    assert len(steps) == -(-(len(prompt) - 1) // 20)
    values = [own for own, _, _ in found]
    assert values == pytest.approx(forward_logprobs(client, prompt), abs=1e-3)


def generate_beams(
    client: Client, prompt: list[int], more_ends: tuple[int, ...] = (), **settings: Any
) -> list[str]:
    """What transformers' own beam search gives, without the tokens that end a text."""
    ends = (*client.engine._text.end_tokens, *more_ends)
    config = GenerationConfig(
        do_sample=False, eos_token_id=list(ends), pad_token_id=ends[0], **settings
    )
    tokens = torch.tensor([prompt])
    output = client.engine._passes.twin.generate(
        tokens, attention_mask=torch.ones_like(tokens), generation_config=config
    )
    decode = client.engine._tokenizer.decode
    texts = [[token for token in row[len(prompt) :] if token not in ends] for row in output]
    return [decode(text, skip_special_tokens=True) for text in texts]


def test_prompts_scored_together_are_what_they_are_alone(client: Client) -> None:
    prompts = [client.tokens(PROMPT)[:length] for length in (9, 16, 12, 2, 1, 13)]
    passes: list[int] = []
    together = scoring.score_prompts(
        client.engine._passes.twin, prompts, 0, lambda: passes.append(1)
    )
    assert len(passes) == 1
    for prompt, found in zip(prompts, together, strict=True):
        values = [own for own, _, _ in found]
        assert values == pytest.approx(forward_logprobs(client, prompt), abs=1e-3)


def test_waiting_scores_share_a_pass(client: Client) -> None:
    groups: list[int] = []
    passes = client.engine._passes
    score = passes.score

    def count(jobs: Any, check: Any) -> Any:
        groups.append(len(jobs))
        return score(jobs, check)

    passes.score = count  # type: ignore[method-assign]
    try:
        prompt = client.tokens(PROMPT)
        answers = [client.start_score(prompt) for _ in range(20)]
        found = [answer.last() for answer in answers]
    finally:
        passes.score = score  # type: ignore[method-assign]
    assert sum(groups) == 20
    assert len(groups) < 10
    assert all(isinstance(end, Scored) for end in found)


@pytest.mark.parametrize("length_penalty", [-3.0, 3.0])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_beams_are_those_of_generate(
    client: Client, early_stopping: bool | str, length_penalty: float
) -> None:
    """Beams that end at different lengths, at a full stop or a comma: each setting tells."""
    prompt = client.tokens("I like dogs because")
    ends = (*client.tokens("."), *client.tokens(","))
    shared: dict[str, Any] = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    found = client.beams(
        prompt, beam_width=4, num_beams_returned=2, max_tokens=16, stop_token_ids=ends, **shared
    )
    expected = generate_beams(
        client, prompt, ends, num_beams=4, num_return_sequences=2, max_new_tokens=16, **shared
    )
    assert [completion.text for completion in found] == expected


def test_penalized_beams_are_those_of_generate(client: Client) -> None:
    prompt = client.tokens("I like dogs and I like cats and I like")
    (found,) = client.beams(prompt, beam_width=3, max_tokens=16, repetition_penalty=1.3)
    settings: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 16}
    (expected,) = generate_beams(client, prompt, repetition_penalty=1.3, **settings)
    assert found.text == expected
    assert [expected] != generate_beams(client, prompt, **settings)


def test_beams_end_at_a_stop_string(client: Client) -> None:
    whole = client.beams("Paris is", beam_width=3, max_tokens=12)[0].text
    stop = whole[4:8]
    for completion in client.beams("Paris is", beam_width=3, max_tokens=12, stop=(stop,)):
        assert stop not in completion.text


def test_beams_keep_min_tokens(client: Client) -> None:
    end = client.engine._text.end_tokens[0]
    wanted = {"beam_width": 2, "max_tokens": 8, "logit_bias": {end: 100.0}}
    (found,) = client.beams("Paris is", **wanted, min_tokens=4)
    assert found.token_ids.index(end) == 4


def test_beams_have_logprobs_of_a_forward_pass(client: Client) -> None:
    prompt = client.tokens("Paris is")
    (found,) = client.beams(prompt, beam_width=2, max_tokens=6, logprobs=2)
    assert found.logprobs is not None
    expected = forward_logprobs(client, [*prompt, *found.token_ids])[len(prompt) - 1 :]
    assert [token.logprob for token in found.logprobs] == pytest.approx(expected, abs=1e-3)


def test_beam_search_is_cancelled_within_a_step(client: Client) -> None:
    prompt = client.tokens("Once upon a time")
    before = client.engine.last_progress()
    long = client.start_beams(prompt, beam_width=4, max_tokens=2000, ignore_eos=True)
    client.wait_for_progress(before)
    client.engine.cancel(client.last_id)
    end = long.last()
    assert isinstance(end, Failed)
    assert isinstance(end.error, Cancelled)
    # The thread is free again: far sooner than 2,000 tokens would take.
    assert len(client.score(PROMPT)) > 0


def test_score_that_fails_harms_no_other(client: Client) -> None:
    """Not even those that would have shared its pass."""
    prompts = [[1, 2, 3], [1, 10**9, 3], [1, 2, 4]]
    answers = [client.start_score(prompt) for prompt in prompts]
    ends = [answer.last() for answer in answers]
    assert isinstance(ends[0], Scored)
    assert isinstance(ends[2], Scored)
    assert isinstance(ends[1], Failed)
    assert isinstance(ends[1].error, EngineError)
    assert client.engine.dead_reason is None


def test_best_tokens_of_a_prompt_are_those_of_a_forward_pass(client: Client) -> None:
    check_best_tokens(client.engine)
