"""Our values to vLLM's and back: sampling parameters, log-probabilities, errors (worker; pure).

Imports vLLM only inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpupool.engines.base import Grammar, SamplingParams, TokenLogprob
from gpupool.errors import BadRequest, EngineDead, EngineError, Overloaded, RequestError

BUSY_RETRY_AFTER_S = 1
MAX_SEED = (1 << 63) - 1
TOKENS_AT_ONCE = 16
"""Handing a token over takes as long as all else that Python does for it. The first one comes
alone; streams are the business of vLLM's own application."""


def to_vllm(params: SamplingParams) -> Any:
    """vLLM's parameters of one sequence; vLLM's own validation error if it refuses."""
    from vllm import SamplingParams as VllmParams
    from vllm.sampling_params import RequestOutputKind

    return VllmParams(
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=max(params.top_k, 0),
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        seed=_seed(params.seed),
        stop=list(params.stop),
        stop_token_ids=list(params.stop_token_ids),
        ignore_eos=params.ignore_eos,
        skip_special_tokens=params.skip_special_tokens,
        logit_bias=dict(params.logit_bias) or None,
        logprobs=params.logprobs,
        structured_outputs=_structured(params.grammar),
        output_kind=RequestOutputKind.DELTA,
        stream_interval=TOKENS_AT_ONCE,
    )


def _structured(grammar: Grammar | None) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    if grammar is None:
        return None
    if grammar.kind == "json_object":
        return StructuredOutputsParams(json_object=True)
    names = {"json_schema": "json", "regex": "regex", "ebnf": "grammar"}
    return StructuredOutputsParams(**{names[grammar.kind]: grammar.text})


def to_score(top: int = 0) -> Any:
    """Parameters that yield the log-probability of every prompt token after the first, and the
    `top` best at its place."""
    return _silent(prompt_logprobs=top)


def to_score_next(token_id: int) -> Any:
    """Parameters that yield the log-probability of one token after the prompt."""
    return _silent(logprob_token_ids=[token_id])


def to_candidates(count: int) -> Any:
    """Parameters that yield the `count` most probable next tokens."""
    return _silent(logprobs=count)


def _silent(**wanted: Any) -> Any:
    from vllm import SamplingParams as VllmParams
    from vllm.sampling_params import RequestOutputKind

    return VllmParams(
        max_tokens=1,
        temperature=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **wanted,
    )


def _seed(seed: int | None) -> int | None:
    """vLLM takes -1 for no seed at all; here it is a seed like any other."""
    return MAX_SEED if seed == -1 else seed


def to_token_logprobs(
    token_ids: tuple[int, ...], positions: Any, count: int | None
) -> tuple[TokenLogprob, ...]:
    """One entry per generated token, with the `count` best alternatives each."""
    if count is None or positions is None:
        return ()
    return tuple(
        to_token_logprob(token_id, position, count)
        for token_id, position in zip(token_ids, positions, strict=True)
    )


def to_token_logprob(token_id: int, position: Mapping[int, Any], count: int) -> TokenLogprob:
    """A token's own value and the best at its position. vLLM puts the token first, whatever its
    rank, and the best after it."""
    ordered = sorted(position.items(), key=lambda item: -item[1].logprob)
    top = tuple(
        TokenLogprob(other, entry.decoded_token or "", entry.logprob)
        for other, entry in ordered[:count]
    )
    own = position[token_id]
    return TokenLogprob(token_id, own.decoded_token or "", own.logprob, top)


def to_request_error(error: BaseException) -> RequestError | None:
    """What the client is told of vLLM's exception; None for one that we did not foresee."""
    from vllm.exceptions import GracefulHTTPError, VLLMClientError
    from vllm.v1.engine.exceptions import EngineDeadError

    if isinstance(error, RequestError):
        return error
    if isinstance(error, EngineDeadError):
        return EngineDead("vLLM's engine process died")
    if isinstance(error, GracefulHTTPError):
        return Overloaded(
            "vLLM's own queue is full (--max-num-queued-reqs, --max-num-queued-tokens)",
            retry_after_s=BUSY_RETRY_AFTER_S,
        )
    if isinstance(error, VLLMClientError):
        param = getattr(error, "parameter", None)
        what = f"{param}={error.value!r}" if param else "the request"
        reason = " ".join(str(error).split()[:40])
        return BadRequest(f"vLLM does not take {what}: {reason}", param=param)
    return None


def unforeseen() -> EngineError:
    """The answer to any other failure of one request; the reason is in the log."""
    return EngineError("vLLM failed on this request; the server's log has the reason")
