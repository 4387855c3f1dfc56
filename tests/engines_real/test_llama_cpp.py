"""Generation and scores of llama.cpp on the real model, in 32 bits, where results are exact."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from gpupool.engines.base import Chunk, Failed
from gpupool.engines.llama_cpp import LlamaCppEngine
from gpupool.errors import BadRequest, EngineError
from gpupool.partition import Slice
from gpupool.settings import Settings
from tests.demo_model import f32_gguf, model_folder
from tests.engines_real.best_tokens import check_best_tokens
from tests.engines_real.transformers_engine import Client, completion_of

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

EXACT = ("--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off")
SLOTS = 8
PROMPT = "The capital of France is"
OTHERS = ["Once upon a time", "1, 2, 3,", "def main():", "Water is", "I", "The sky", "Yes", "No"]
EMOJI = "Here are some emoji: 😀😁😂🤣😃😄😅😆😉😊 😋"
END = 2  # <|im_end|>


@contextmanager
def loaded_engine(model: Path, *engine_args: str) -> Iterator[LlamaCppEngine]:
    settings = Settings(model_name=str(model), engine_args=engine_args)
    # One thread: several wait for each other at every step, for long on a busy machine.
    core = min(os.sched_getaffinity(0))
    engine = LlamaCppEngine(settings, Slice(slot=0, gpus=(), cpus=(core,)))
    try:
        engine.load(lambda phase, fraction: None)
        yield engine
    finally:
        engine.die()


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    args = ("--ctx-size", str(SLOTS * 512), "--parallel", str(SLOTS))
    with loaded_engine(f32_gguf(), *EXACT, *args) as engine:
        yield Client(engine)  # type: ignore[arg-type]


@cache
def network() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float32)


def logits_of(tokens: Sequence[int]) -> Any:
    """A forward pass of transformers: one row for what follows each token."""
    import torch

    with torch.no_grad():
        return network()(torch.tensor([list(tokens)])).logits[0]


def reference(tokens: Sequence[int]) -> list[float]:
    rows = logits_of(tokens)[:-1].log_softmax(-1)
    return [row[token].item() for row, token in zip(rows, tokens[1:], strict=True)]


@pytest.mark.slow  # what is likeliest follows from the log-probabilities, which are compared below
def test_greedy_is_what_transformers_gives(client: Client) -> None:
    import torch

    tokens = client.tokens(PROMPT)
    output = network().generate(torch.tensor([tokens]), do_sample=False, max_new_tokens=24)
    found = client.complete(PROMPT, temperature=0, max_tokens=24)
    assert list(found.token_ids) == output[0, len(tokens) :].tolist()


def test_tokens_are_those_of_transformers(client: Client) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    texts = [
        "",
        " lead",
        "a\n\n b\t",
        "12 345",
        "naïve 日本語 😀",
        "<|im_start|>user\nHi<|im_end|>",
    ]
    for text in texts:
        assert client.tokens(text) == tokenizer(text).input_ids


def test_concurrent_generations_share_the_batch(client: Client) -> None:
    answers = [client.start(text, max_tokens=24, seed=1, ignore_eos=True) for text in OTHERS]
    # All have begun before any has ended: one after another could not give that.
    firsts = [answer.next() for answer in answers]
    assert all(isinstance(event, Chunk) for event in firsts)
    assert not any(isinstance(answer.events[-1], Failed) for answer in answers)
    ended_early = [len(answer.chunks) >= 24 for answer in answers]
    for answer in answers:
        completion_of(answer)
    assert not any(ended_early)


def test_more_requests_than_slots_all_answer(client: Client) -> None:
    answers = [client.start(PROMPT, max_tokens=4, seed=i) for i in range(3 * SLOTS)]
    assert {completion_of(answer).finish_reason for answer in answers} <= {"length", "stop"}


@pytest.mark.slow  # tests/server/test_infer.py asks a whole pool for the same
@pytest.mark.parametrize("seed", [42, -1, 2**63 - 1], ids=["small", "negative", "64 bits"])
def test_seed_gives_the_same_text_alone_and_among_others(client: Client, seed: int) -> None:
    params: dict[str, Any] = {"temperature": 1.0, "seed": seed, "max_tokens": 24}
    alone = client.complete(PROMPT, **params)
    assert client.complete(PROMPT, **params) == alone
    answers = [client.start(text, seed=1, max_tokens=40) for text in OTHERS[: SLOTS - 1]]
    among = client.complete(PROMPT, **params)
    for answer in answers:
        completion_of(answer)
    assert among == alone


def test_seeds_beyond_32_bits_differ(client: Client) -> None:
    params: dict[str, Any] = {"temperature": 1.5, "max_tokens": 16}
    texts = {client.complete(PROMPT, seed=5 + (i << 32), **params).text for i in range(4)}
    assert len(texts) == 4


def test_without_a_seed_texts_differ(client: Client) -> None:
    texts = {client.complete(PROMPT, temperature=1.5, max_tokens=16).text for _ in range(4)}
    assert len(texts) > 1


def test_chunks_make_the_completion(client: Client) -> None:
    answer = client.start(EMOJI, temperature=1.0, seed=1, max_tokens=30, logprobs=1)
    found = completion_of(answer)
    assert "".join(chunk.text for chunk in answer.chunks) == found.text
    assert sum((chunk.token_ids for chunk in answer.chunks), ()) == found.token_ids
    assert sum((chunk.logprobs for chunk in answer.chunks), ()) == found.logprobs


def test_logprobs_are_those_of_a_forward_pass(client: Client) -> None:
    found = client.complete(
        PROMPT, temperature=1.3, seed=5, max_tokens=12, logprobs=3, logit_bias={10: 2.0}
    )
    prompt = client.tokens(PROMPT)
    rows = logits_of([*prompt, *found.token_ids])[len(prompt) - 1 : -1].log_softmax(-1)
    assert found.logprobs is not None
    for row, token in zip(rows, found.logprobs, strict=True):
        assert token.logprob == pytest.approx(row[token.token_id].item(), abs=1e-2)
        best = row.topk(3)
        assert [other.token_id for other in token.top] == best.indices.tolist()
        assert [other.logprob for other in token.top] == pytest.approx(
            best.values.tolist(), abs=1e-2
        )


def test_characters_of_several_tokens_keep_ids_and_logprobs(client: Client) -> None:
    found = client.complete(EMOJI, temperature=0, max_tokens=9, logprobs=1)
    assert len(found.text) == 3
    assert list(found.token_ids) == client.tokens(found.text)
    prompt = client.tokens(EMOJI)
    expected = reference([*prompt, *found.token_ids])[len(prompt) - 1 :]
    assert found.logprobs is not None
    assert [token.token_id for token in found.logprobs] == list(found.token_ids)
    assert [token.logprob for token in found.logprobs] == pytest.approx(expected, abs=1e-2)


def test_completion_ends_before_a_character_that_it_cannot_finish(client: Client) -> None:
    whole = client.complete(EMOJI, temperature=0, max_tokens=6)
    found = client.complete(EMOJI, temperature=0, max_tokens=8)
    assert (found.text, found.token_ids) == (whole.text, whole.token_ids)
    assert found.finish_reason == "length"


SCORED = ["The capital of France is Paris.", EMOJI, "<|im_start|>user\nHi<|im_end|>\n"]


@pytest.mark.parametrize("text", SCORED, ids=["words", "characters of several tokens", "special"])
def test_scores_are_those_of_a_forward_pass(client: Client, text: str) -> None:
    assert client.score(text) == pytest.approx(reference(client.tokens(text)), abs=1e-2)


def test_score_of_an_improbable_broken_token_is_exact(client: Client) -> None:
    """Its value is not among the best, so it comes from a comparison with another token."""
    first = client.tokens("😀")[0]
    tokens = [*client.tokens(PROMPT), first]
    assert client.score(tokens)[-1] == pytest.approx(reference(tokens)[-1], abs=1e-2)


def test_scores_at_once_do_not_mix(client: Client) -> None:
    texts = [f"{PROMPT} {city}." for city in ("Paris", "Rome", "Oslo", "Lima")] * 2
    prompts = [client.tokens(text) for text in texts]
    answers = [
        client.ask(lambda name, sink, tokens=tokens: client.engine.score(name, tokens, sink))
        for tokens in prompts
    ]
    for answer, tokens in zip(answers, prompts, strict=True):
        assert answer.last().logprobs == pytest.approx(reference(tokens), abs=1e-2)


def test_score_of_one_token_is_empty(client: Client) -> None:
    assert client.score([5]) == ()


def test_stop_string_is_not_part_of_the_text(client: Client) -> None:
    whole = client.complete(PROMPT, temperature=0, max_tokens=24).text
    stop = whole[5:11]
    found = client.complete(PROMPT, temperature=0, max_tokens=24, stop=(stop,))
    assert (found.text, found.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_stop_token_ends_without_its_text(client: Client) -> None:
    whole = client.complete(PROMPT, temperature=0, max_tokens=8)
    end = whole.token_ids[4]
    assert end not in whole.token_ids[:4]
    found = client.complete(PROMPT, temperature=0, max_tokens=8, stop_token_ids=(end,))
    assert (found.token_ids, found.finish_reason) == (whole.token_ids[:5], "stop")
    assert found.text == client.complete(PROMPT, temperature=0, max_tokens=4).text


def test_end_token_ends_unless_ignored(client: Client) -> None:
    forced: dict[str, Any] = {"temperature": 0, "max_tokens": 4, "logit_bias": {END: 100.0}}
    found = client.complete(PROMPT, **forced, skip_special_tokens=False)
    assert (found.text, found.token_ids, found.finish_reason) == ("", (END,), "stop")
    ignoring = client.complete(PROMPT, **forced, ignore_eos=True)
    assert ignoring.token_ids == (END,) * 4


@pytest.mark.parametrize("end", [{"logit_bias": {END: 100.0}}, {"stop_token_ids": (7042,)}])
def test_min_tokens_keeps_ends_out(client: Client, end: dict[str, Any]) -> None:
    """7042 is " Paris", what the greedy completion begins with."""
    found = client.complete(PROMPT, temperature=0, max_tokens=8, min_tokens=3, **end)
    assert len(found.token_ids) > 3
    assert 7042 not in found.token_ids[:3] or "stop_token_ids" not in end


def test_stop_string_waits_for_min_tokens(client: Client) -> None:
    found = client.complete(PROMPT, temperature=0, max_tokens=12, stop=(" Paris",), min_tokens=6)
    assert len(found.token_ids) >= 6


def test_special_tokens_are_shown_on_demand(client: Client) -> None:
    forced: dict[str, Any] = {"temperature": 0, "max_tokens": 2, "logit_bias": {5: 100.0}}
    shown = client.complete(PROMPT, **forced, skip_special_tokens=False)
    hidden = client.complete(PROMPT, **forced)
    assert (shown.text, hidden.text) == ("<file_sep>" * 2, "")
    assert shown.token_ids == hidden.token_ids == (5, 5)


def penalized(prompt: list[int], num_tokens: int, presence: float, frequency: float) -> list[int]:
    """Greedy by the definition: over generated tokens alone."""
    generated: list[int] = []
    for _ in range(num_tokens):
        row = logits_of([*prompt, *generated])[-1].clone()
        for token, times in Counter(generated).items():
            row[token] -= presence + frequency * times
        generated.append(int(row.argmax()))
    return generated


@pytest.mark.parametrize(("presence", "frequency"), [(1.7, 0.0), (0.0, 0.9), (1.0, 0.6)])
def test_penalties_count_generated_tokens_only(
    client: Client, presence: float, frequency: float
) -> None:
    text = "one two three one two three one two three one"
    found = client.complete(
        text,
        temperature=0,
        max_tokens=10,
        presence_penalty=presence,
        frequency_penalty=frequency,
        ignore_eos=True,
    )
    expected = penalized(client.tokens(text), 10, presence, frequency)
    assert list(found.token_ids) == expected


def test_repetition_penalty_counts_the_prompt_too(client: Client) -> None:
    text = "one two three one two three one two three one " * 12
    prompt = client.tokens(text)
    assert len(prompt) > 64  # llama.cpp's own default looks back that far
    row = logits_of(prompt)[-1].clone()
    for token in set(prompt):
        row[token] = row[token] / 3.0 if row[token] > 0 else row[token] * 3.0
    found = client.complete(prompt, temperature=0, max_tokens=1, repetition_penalty=3.0)
    assert found.token_ids == (int(row.argmax()),)


def test_penalties_that_exclude_each_other_are_refused(client: Client) -> None:
    end = client.start(PROMPT, repetition_penalty=1.2, presence_penalty=1.0).last()
    assert isinstance(end, Failed)
    assert isinstance(end.error, BadRequest)


def test_no_sampler_is_on_unasked(client: Client) -> None:
    """With llama.cpp's own top_k 40 and min_p 0.05 all these would be among the likeliest."""
    prompt = client.tokens("The")
    answers = [
        client.start(prompt, temperature=3.0, max_tokens=1, seed=i) for i in range(SLOTS * 2)
    ]
    best = set(logits_of(prompt)[-1].topk(40).indices.tolist())
    found = {completion_of(answer).token_ids[0] for answer in answers}
    assert found - best


def test_prompt_and_completion_may_fill_the_context(client: Client) -> None:
    room = client.engine.model.context_tokens
    prompt = [*client.tokens(PROMPT), *client.tokens(" a" * room)][: room - 3]
    found = client.complete(prompt, temperature=0, max_tokens=3, ignore_eos=True)
    assert (len(found.token_ids), found.finish_reason) == (3, "length")


def test_no_tokens_at_all(client: Client) -> None:
    found = client.complete(PROMPT, max_tokens=0)
    assert (found.text, found.token_ids, found.finish_reason) == ("", (), "length")


def test_request_that_fails_harms_no_other(client: Client) -> None:
    """A prompt beyond the context cannot come through the API; here it does."""
    alone = client.complete(PROMPT, temperature=0, max_tokens=30)
    good = client.start(PROMPT, temperature=0, max_tokens=30)
    bad = client.start([5] * 100_000, max_tokens=30).last()
    assert isinstance(bad, Failed)
    assert isinstance(bad.error, EngineError)
    assert completion_of(good).token_ids == alone.token_ids
    assert client.engine.dead_reason is None


def test_best_tokens_of_a_prompt_are_those_of_a_forward_pass(client: Client) -> None:
    check_best_tokens(client.engine)
