"""Generation on the real engine and the real model, in 32 bits, where results are exact."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch  # noqa: TID253 (no test here runs without it)

from gpupool.engines.base import Failed
from gpupool.errors import EngineError
from tests.engines_real.transformers_engine import Client, completion_of

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

PROMPT = "The capital of France is"
OTHERS = ["Once upon a time", "1, 2, 3,", "def main():", "Water is", "I", "The sky", "Yes", "No"]


@pytest.fixture
def client(transformers_client: Client) -> Client:
    return transformers_client


def network(client: Client) -> Any:
    return client.engine._passes.twin


def test_greedy_is_what_generate_gives(client: Client) -> None:
    tokens = client.tokens(PROMPT)
    output = network(client).generate(
        torch.tensor([tokens]), do_sample=False, max_new_tokens=24, pad_token_id=0
    )
    found = client.complete(PROMPT, temperature=0, max_tokens=24, ignore_eos=True)
    assert list(found.token_ids) == output[0, len(tokens) :].tolist()
    assert found.text == client.engine._tokenizer.decode(found.token_ids)


def test_length_ends_a_completion(client: Client) -> None:
    found = client.complete(PROMPT, temperature=0, max_tokens=3, ignore_eos=True)
    assert (len(found.token_ids), found.finish_reason) == (3, "length")


def test_chunks_make_the_completion(client: Client) -> None:
    answer = client.start("Count: 1 2 3", temperature=1.0, seed=1, max_tokens=30, logprobs=1)
    found = completion_of(answer)
    assert "".join(chunk.text for chunk in answer.chunks) == found.text
    assert sum((chunk.token_ids for chunk in answer.chunks), ()) == found.token_ids
    assert sum((chunk.logprobs for chunk in answer.chunks), ()) == found.logprobs


def test_concurrent_requests_share_steps(client: Client) -> None:
    manager = client.engine._batch._manager  # type: ignore[union-attr]
    before = manager.current_batch
    answers = [client.start(text, max_tokens=20, seed=1, ignore_eos=True) for text in OTHERS]
    for answer in answers:
        completion_of(answer)
    assert manager.current_batch - before < 2 * 20 + len(OTHERS)


@pytest.mark.slow  # tests/server/test_infer.py asks a whole pool for the same
@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_seed_gives_the_same_text_alone_and_among_others(
    client: Client, temperature: float
) -> None:
    params: dict[str, Any] = {"temperature": temperature, "seed": 42, "max_tokens": 24}
    alone = client.complete(PROMPT, **params)
    answers = [client.start(text, seed=1, max_tokens=40) for text in OTHERS]
    among = client.complete(PROMPT, **params)
    for answer in answers:
        completion_of(answer)
    assert client.complete(PROMPT, **params) == alone
    assert among == alone


def test_greedy_among_sampled_is_greedy(client: Client) -> None:
    alone = client.complete(PROMPT, temperature=0, max_tokens=16)
    answers = [client.start(text, temperature=2.0, max_tokens=16) for text in OTHERS]
    among = client.complete(PROMPT, temperature=0, max_tokens=16)
    for answer in answers:
        completion_of(answer)
    assert among.token_ids == alone.token_ids


def test_logprobs_are_those_of_a_forward_pass(client: Client) -> None:
    found = client.complete(
        PROMPT, temperature=1.3, seed=5, max_tokens=12, logprobs=3, logit_bias={10: 2.0}
    )
    prompt = client.tokens(PROMPT)
    tokens = torch.tensor([[*prompt, *found.token_ids]])
    with torch.no_grad():
        logits = network(client)(tokens).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1)
    assert found.logprobs is not None
    for row, token in zip(expected, found.logprobs, strict=True):
        assert token.logprob == pytest.approx(row[token.token_id].item(), abs=1e-3)
        best = row.topk(3)
        assert [other.token_id for other in token.top] == best.indices.tolist()
        assert [other.logprob for other in token.top] == pytest.approx(
            best.values.tolist(), abs=1e-3
        )


def test_stop_string_is_not_part_of_the_text(client: Client) -> None:
    whole = client.complete(PROMPT, temperature=0, max_tokens=24).text
    stop = whole[5:11]
    found = client.complete(PROMPT, temperature=0, max_tokens=24, stop=(stop,))
    assert (found.text, found.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_stop_string_over_several_tokens_ends_at_the_last_of_them(client: Client) -> None:
    whole = client.complete(PROMPT, temperature=0, max_tokens=24)
    decode = client.engine._tokenizer.decode
    stop = decode(whole.token_ids[4:7])
    assert all(decode([token]) != stop for token in whole.token_ids)
    found = client.complete(PROMPT, temperature=0, max_tokens=24, stop=(stop,))
    assert found.token_ids == whole.token_ids[:7]


def test_stop_string_waits_for_min_tokens(client: Client) -> None:
    whole = client.complete(PROMPT, temperature=0, max_tokens=12)
    stop = client.engine._tokenizer.decode(whole.token_ids[:1])
    found = client.complete(PROMPT, temperature=0, max_tokens=12, stop=(stop,), min_tokens=6)
    assert len(found.token_ids) >= 6


def test_stop_token_ends_without_its_text(client: Client) -> None:
    whole = client.complete(PROMPT, temperature=0, max_tokens=8)
    end = whole.token_ids[4]
    assert end not in whole.token_ids[:4]
    found = client.complete(PROMPT, temperature=0, max_tokens=8, stop_token_ids=(end,))
    assert (found.token_ids, found.finish_reason) == (whole.token_ids[:5], "stop")
    assert found.text == client.engine._tokenizer.decode(whole.token_ids[:4])


def test_end_token_ends_unless_ignored(client: Client) -> None:
    end = client.engine._text.end_tokens[0]
    forced = {"temperature": 0, "max_tokens": 4, "logit_bias": {end: 100.0}}
    found = client.complete(PROMPT, **forced)
    assert (found.text, found.token_ids, found.finish_reason) == ("", (end,), "stop")
    ignoring = client.complete(PROMPT, **forced, ignore_eos=True)
    assert ignoring.token_ids == (end,) * 4


def test_min_tokens_keeps_the_end_token_out(client: Client) -> None:
    end = client.engine._text.end_tokens[0]
    found = client.complete(
        PROMPT, temperature=0, max_tokens=8, min_tokens=3, logit_bias={end: 100.0}
    )
    assert (len(found.token_ids), found.token_ids[-1]) == (4, end)


def test_special_tokens_are_shown_on_demand(client: Client) -> None:
    special = client.engine._text.end_tokens[0]
    forced = {"temperature": 0, "max_tokens": 1, "logit_bias": {special: 100.0}}
    shown = client.complete(PROMPT, **forced, ignore_eos=True, skip_special_tokens=False)
    hidden = client.complete(PROMPT, **forced, ignore_eos=True)
    assert (shown.text, hidden.text) == (client.engine._tokenizer.decode([special]), "")


def test_character_of_several_tokens_comes_whole(client: Client) -> None:
    assert len(client.tokens("🦜")) > 1
    answer = client.start("🦜🦜🦜🦜🦜🦜🦜🦜", temperature=0, max_tokens=16)
    assert "🦜🦜" in completion_of(answer).text
    assert not any("\ufffd" in chunk.text for chunk in answer.chunks)


def test_prompt_longer_than_a_step_is_read_in_several(client: Client) -> None:
    """Its logits come from the last step alone."""
    prompt = client.tokens("one two three four five six seven eight nine ten " * 60)
    assert len(prompt) > 512
    found = client.complete(prompt, temperature=0, max_tokens=4, logprobs=1)
    with torch.no_grad():
        expected = network(client)(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    assert found.logprobs is not None
    assert found.logprobs[0].logprob == pytest.approx(expected.max().item(), abs=1e-3)


def test_request_that_fails_harms_no_other(client: Client) -> None:
    """A token id beyond the vocabulary cannot come through the API; here it does."""
    alone = client.complete(PROMPT, temperature=0, max_tokens=30)
    good = client.start(PROMPT, temperature=0, max_tokens=30)
    bad = client.start(PROMPT, temperature=0, max_tokens=30, logit_bias={10**9: 1.0})
    end = bad.last()
    assert isinstance(end, Failed)
    assert isinstance(end.error, EngineError)
    assert completion_of(good).token_ids == alone.token_ids
    assert client.engine.dead_reason is None


def test_progress_moves_while_a_request_runs(client: Client) -> None:
    before = time.monotonic()
    client.complete(PROMPT, max_tokens=2, ignore_eos=True)
    assert client.engine.last_progress() > before
