"""POST /infer: a list of prompts in, a JSON list in the same order out (worker process)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from flask import Blueprint, Response, current_app, jsonify

from gpupool.api.batch import Job, Outcome, run_batch
from gpupool.api.clock import RequestClock, whole_at
from gpupool.api.json_body import read_object
from gpupool.api.params import Ask, parse_params
from gpupool.engines.base import (
    Completion,
    Engine,
    Failed,
    Finished,
    SamplingParams,
    Scored,
    TokenLogprob,
)
from gpupool.errors import BadRequest, RequestError, render_error
from gpupool.nearest import nearest_hint
from gpupool.replica import Replica
from gpupool.totals import Totals

blueprint = Blueprint("infer", __name__)

BODY_KEYS = ("instances", "params", "detail")
MAX_SEQUENCES = 200_000  # each costs some hundred bytes before it runs
LOWEST_LOGPROB = -9999.0  # JSON has no minus infinity


@dataclass(frozen=True, slots=True)
class Item:
    """One instance: its prompt and where its outcomes stand in the batch."""

    prompt: Sequence[int]
    generated: range
    scored: int | None


@blueprint.post("/infer")
def infer() -> Response:
    """Generate for, or score, every instance."""
    body = read_object()
    texts = _read_instances(body)
    params = body.get("params")
    if params is not None and not isinstance(params, dict):
        raise BadRequest("params must be an object", param="params")
    detail = body.get("detail", False)
    if not isinstance(detail, bool):
        raise BadRequest("detail must be true or false", param="detail")
    replica: Replica = current_app.extensions["gpupool"]
    engine = replica.ready_engine()
    ask = parse_params(params or {}, engine.default_params, engine.capabilities, engine.model)
    if len(texts) * ask.best_of > MAX_SEQUENCES:
        raise BadRequest(
            f"{len(texts)} instances with {ask.best_of} completions each are more than "
            f"{MAX_SEQUENCES} sequences; send them in several requests",
            param="instances",
        )
    prompts = [_tokenize(engine, text, index, ask) for index, text in enumerate(texts)]
    items, jobs = _plan(prompts, ask, engine, detail)
    totals: Totals = current_app.extensions["gpupool.totals"]
    outcomes = run_batch(engine, jobs, RequestClock(totals, whole_at()))
    answers = [
        _detail(item, outcomes, ask, replica.slot) if detail else _plain(item, outcomes, ask)
        for item in items
    ]
    totals.tokens(prompt=sum(map(len, prompts)), generated=sum(map(_num_tokens, outcomes)))
    return jsonify(answers)


def _num_tokens(outcome: Outcome) -> int:
    if not isinstance(outcome, Finished):
        return 0
    return sum(len(completion.token_ids) for completion in outcome.completions)


def _read_instances(body: dict[str, Any]) -> list[str]:
    for key in body:
        if key not in BODY_KEYS:
            raise BadRequest(
                f"unknown key {key[:60]!r} in the body{nearest_hint(key, BODY_KEYS)}; "
                f"it takes {', '.join(BODY_KEYS)}",
                param=key[:60],
                code="unknown_parameter",
            )
    instances = body.get("instances")
    if isinstance(instances, str):
        instances = [instances]
    if not isinstance(instances, list) or not instances:
        raise BadRequest("instances must be a prompt or a list of at least one", param="instances")
    for index, text in enumerate(instances):
        if not isinstance(text, str) or not text:
            raise BadRequest(
                f"instances[{index}] must be a string that is not empty",
                param=f"instances[{index}]",
            )
    return instances


def _tokenize(engine: Engine, text: str, index: int, ask: Ask) -> list[int]:
    param = f"instances[{index}]"
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"{param} has half of a surrogate pair", param=param) from None
    context = engine.model.context_tokens
    # No tokenizer makes a token of more than a few hundred bytes, so a text this much longer
    # than the context cannot fit; it is refused before its tokenization costs seconds.
    if len(text) > context * 512:
        raise _too_long(param, f"{len(text)} characters", context)
    tokens = engine.tokenize(text)
    if not tokens:
        raise BadRequest(f"{param} has no tokens", param=param)
    if len(tokens) + (0 if ask.score else 1) > context:
        raise _too_long(param, f"{len(tokens)} tokens", context)
    return tokens


def _too_long(param: str, length: str, context: int) -> BadRequest:
    return BadRequest(
        f"{param} has {length}; this model's context has {context} tokens, "
        "the completion's included",
        param=param,
        code="context_length_exceeded",
    )


def _plan(
    prompts: list[list[int]], ask: Ask, engine: Engine, detail: bool
) -> tuple[list[Item], list[Job]]:
    """The jobs, prompt by prompt. Without detail a scored prompt's text is not asked for."""
    items: list[Item] = []
    jobs: list[Job] = []
    for prompt in prompts:
        first = len(jobs)
        if not ask.score or detail:
            jobs += _generations(prompt, ask, engine.model.context_tokens)
        generated = range(first, len(jobs))
        scored = None
        if ask.score:
            scored = len(jobs)
            jobs.append(Job("score", prompt, ask.sampling))
        items.append(Item(prompt, generated, scored))
    return items, jobs


def _generations(prompt: list[int], ask: Ask, context_tokens: int) -> list[Job]:
    room = min(ask.sampling.max_tokens, context_tokens - len(prompt))
    if room == 0:
        return []
    params = replace(ask.sampling, max_tokens=room, min_tokens=min(ask.sampling.min_tokens, room))
    if ask.beam_search:
        return [Job("beam_search", prompt, params)]
    return [Job("generate", prompt, _with_seed(params, i)) for i in range(ask.best_of)]


def _with_seed(params: SamplingParams, index: int) -> SamplingParams:
    """The i-th completion of a seeded prompt has the seed + i, as in vLLM."""
    if params.seed is None or index == 0:
        return params
    seed = (params.seed + index + (1 << 63)) % (1 << 64) - (1 << 63)
    return replace(params, seed=seed)


def _completions(item: Item, outcomes: list[Outcome], ask: Ask) -> list[Completion]:
    """The instance's n completions; raises the error of the first that failed."""
    found: list[Completion] = []
    for index in item.generated:
        outcome = outcomes[index]
        if isinstance(outcome, Failed):
            raise outcome.error
        assert isinstance(outcome, Finished)
        found += outcome.completions
    if ask.best_of > ask.n and not ask.beam_search:
        found.sort(key=_cumulative_logprob, reverse=True)
    return found[: ask.n]


def _cumulative_logprob(completion: Completion) -> float:
    return sum(token.logprob for token in completion.logprobs or ())


def _scores(item: Item, outcomes: list[Outcome]) -> list[float]:
    assert item.scored is not None
    outcome = outcomes[item.scored]
    if isinstance(outcome, Failed):
        raise outcome.error
    assert isinstance(outcome, Scored)
    return [max(value, LOWEST_LOGPROB) for value in outcome.logprobs]


def _plain(item: Item, outcomes: list[Outcome], ask: Ask) -> Any:
    if ask.score:
        return _scores(item, outcomes)
    texts = [completion.text for completion in _completions(item, outcomes, ask)]
    return texts if ask.n > 1 else texts[0]


def _detail(item: Item, outcomes: list[Outcome], ask: Ask, worker: int) -> Any:
    """An object per completion (a list of them for n > 1); an item's error is its own."""
    common: dict[str, Any] = {"prompt_tokens": len(item.prompt), "replica": worker, "tries": 1}
    try:
        if ask.score:
            common["prompt_logprobs"] = _scores(item, outcomes)
            common["prompt_token_ids"] = list(item.prompt)
        completions = _completions(item, outcomes, ask)
    except RequestError as error:
        _, _, error_body = render_error(error)
        return common | {"text": None} | error_body
    objects = [_describe(completion) | common | {"error": None} for completion in completions]
    if ask.n > 1:
        return objects
    nothing = {"text": "", "finish_reason": "length", "completion_tokens": 0, "logprobs": None}
    return objects[0] if objects else nothing | common | {"error": None}


def _describe(completion: Completion) -> dict[str, Any]:
    logprobs = completion.logprobs
    return {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "completion_tokens": len(completion.token_ids),
        "token_ids": list(completion.token_ids),
        "logprobs": None if logprobs is None else [_token(token) for token in logprobs],
    }


def _token(token: TokenLogprob) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": token.token_id,
        "token": token.token,
        "logprob": max(token.logprob, LOWEST_LOGPROB),
    }
    if token.top:
        shown["top"] = [_token(other) for other in token.top]
    return shown
