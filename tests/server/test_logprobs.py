"""Log-probabilities of 30 fixed prompts, on each real engine, against a direct forward pass."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.pool import Pool
from tests.server.engines import NAMES
from tests.server.reference import PROMPTS, scores

pytestmark = [pytest.mark.server, pytest.mark.model, pytest.mark.timeout(600)]

TOLERANCE = 1e-2
LONGEST = len(PROMPTS) - 1  # 35 s of a core on llama.cpp


@pytest.fixture(scope="module", name="reference")
def _reference() -> list[tuple[list[int], list[float]]]:
    return [(ids, values) for ids, values, _ in scores()]


@pytest.fixture(scope="module", params=NAMES, name="pool")
def _pool(request: pytest.FixtureRequest, shared_pool: Callable[[str], Pool]) -> Pool:
    return shared_pool(request.param)


def infer(pool: Pool, instances: Any, **params: Any) -> Any:
    """As Pool.infer, with the patience that llama.cpp's scores of a long prompt need."""
    body = {"instances": instances, "params": params, "detail": True}
    status, answer = pool.post("/infer", body, 500)
    assert status == 200, answer
    return answer


@pytest.fixture(scope="module", name="alone")
def _alone(pool: Pool) -> list[Any]:
    """What is told of each prompt but the longest when nothing else runs."""
    return [score(pool, prompt) for prompt in PROMPTS[:LONGEST]]


def score(pool: Pool, prompt: str) -> Any:
    return infer(pool, prompt, prompt_logprobs=0, max_tokens=0)[0]


def largest_difference(answers: list[Any], reference: Any) -> float:
    found = [answer["prompt_logprobs"] for answer in answers]
    assert [len(values) for values in found] == [len(values) for _, values in reference]
    return max(
        abs(value - right)
        for values, (_, rights) in zip(found, reference, strict=True)
        for value, right in zip(values, rights, strict=True)
    )


def test_the_fixed_prompts_cover_what_they_should(reference: Any) -> None:
    lengths = [len(ids) for ids, _ in reference]
    assert len(PROMPTS) == 30
    assert min(lengths) == 1
    assert lengths[LONGEST] == max(lengths) >= 1000
    assert min(min(values, default=0) for _, values in reference) < -15


def test_ids_are_the_tokenizers(alone: list[Any], reference: Any) -> None:
    assert [item["prompt_token_ids"] for item in alone] == [ids for ids, _ in reference[:LONGEST]]


def test_values_alone_are_those_of_a_forward_pass(
    alone: list[Any], reference: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_and_check("alone", largest_difference(alone, reference[:LONGEST]), capsys)


@pytest.mark.parametrize(
    "pool",
    [pytest.param(name, marks=pytest.mark.slow if name == "llama_cpp" else ()) for name in NAMES],
    indirect=True,
)
def test_values_of_the_longest_alone_are_those_of_a_forward_pass(
    pool: Pool, reference: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = score(pool, PROMPTS[LONGEST])
    assert answer["prompt_token_ids"] == reference[LONGEST][0]
    tell_and_check("the longest alone", largest_difference([answer], reference[LONGEST:]), capsys)


@pytest.mark.parametrize(
    ("pool", "num_prompts"),
    [
        *((name, LONGEST if name == "llama_cpp" else len(PROMPTS)) for name in NAMES),
        pytest.param("llama_cpp", len(PROMPTS), marks=pytest.mark.slow),
    ],
    indirect=["pool"],
)
def test_values_among_others_are_those_of_a_forward_pass(
    pool: Pool, num_prompts: int, reference: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, reference = PROMPTS[:num_prompts], reference[:num_prompts]
    with ThreadPoolExecutor(16) as threads:
        others = [
            threads.submit(infer, pool, f"Story {i}:", max_tokens=40, ignore_eos=True, seed=i)
            for i in range(15)
        ]
        answers = infer(pool, prompts, prompt_logprobs=0, max_tokens=0)
        assert all(other.result()[0]["completion_tokens"] == 40 for other in others)
    assert [item["prompt_token_ids"] for item in answers] == [ids for ids, _ in reference]
    tell_and_check("among 15 others", largest_difference(answers, reference), capsys)


def tell_and_check(what: str, worst: float, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nlargest difference, {what}: {worst:.1e}")
    assert worst < TOLERANCE
