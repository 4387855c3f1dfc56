"""Our values to vLLM's and back. Importing vLLM takes seconds."""

from __future__ import annotations

from typing import Any

import pytest

from gpupool.engines.base import SamplingParams
from gpupool.engines.vllm_sampling import to_request_error, to_token_logprob, to_vllm
from gpupool.errors import BadRequest, EngineDead, Overloaded

pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("seed", [0, -1, 7, -(1 << 63), (1 << 63) - 1])
def test_every_seed_is_a_seed(seed: int) -> None:
    assert to_vllm(SamplingParams(seed=seed)).seed is not None


def test_no_seed_stays_none() -> None:
    assert to_vllm(SamplingParams()).seed is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 9),
        ("min_tokens", 3),
        ("temperature", 0.5),
        ("top_p", 0.4),
        ("top_k", 12),
        ("min_p", 0.1),
        ("presence_penalty", 0.3),
        ("frequency_penalty", -0.3),
        ("repetition_penalty", 1.3),
        ("seed", 5),
        ("stop", ["x", "yy"]),
        ("stop_token_ids", [4, 5]),
        ("ignore_eos", True),
        ("skip_special_tokens", False),
        ("logit_bias", {3: -100.0}),
        ("logprobs", 0),
    ],
)
def test_every_parameter_reaches_vllm(name: str, value: Any) -> None:
    given = tuple(value) if isinstance(value, list) else value
    assert getattr(to_vllm(SamplingParams(**{name: given})), name) == value


def test_a_chosen_token_outside_the_best_keeps_its_own_value() -> None:
    from vllm.logprobs import Logprob

    position = {9: Logprob(-5.0, 70, "c"), 1: Logprob(-0.1, 1, "a"), 2: Logprob(-2.0, 2, "b")}
    entry = to_token_logprob(9, position, 2)
    assert (entry.token, entry.logprob, [t.token_id for t in entry.top]) == ("c", -5.0, [1, 2])


def test_a_librarys_text_is_not_for_the_client() -> None:
    assert to_request_error(RuntimeError("/secret/path")) is None


def test_what_vllm_says_of_a_parameter_is_a_400_that_names_it() -> None:
    from vllm.exceptions import VLLMValidationError

    error = to_request_error(VLLMValidationError("too hot", parameter="temperature", value=3))
    assert isinstance(error, BadRequest)
    assert (error.param, "temperature=3" in str(error)) == ("temperature", True)


def test_a_full_queue_of_vllms_is_a_429() -> None:
    from vllm.exceptions import QueueOverflowError

    error = to_request_error(QueueOverflowError())
    assert isinstance(error, Overloaded)
    assert error.retry_after_s


def test_a_dead_engine_is_told_from_a_failed_request() -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    assert isinstance(to_request_error(EngineDeadError()), EngineDead)
