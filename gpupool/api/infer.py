"""POST /infer: a list of prompts in, a JSON list in the same order out (worker process)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from flask import Blueprint, Response, current_app, jsonify, request

from gpupool.api.clock import whole_at
from gpupool.api.json_body import read_object
from gpupool.api.params import STREAMS, Ask, parse_params
from gpupool.api.values import nth_seed
from gpupool.batch import Job, Result, run_here
from gpupool.call import current_call
from gpupool.clock import RequestClock
from gpupool.engines.base import (
    Completion,
    Engine,
    Failed,
    Finished,
    SamplingParams,
    Scored,
    TokenLogprob,
)
from gpupool.errors import BadRequest, RequestError, Unavailable, render_error
from gpupool.fanout import Fanout
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
    body = read_object(request.get_data())
    texts = _read_instances(body)
    params = body.get("params")
    if params is not None and not isinstance(params, dict):
        raise BadRequest("params must be an object", param="params")
    detail = body.get("detail", False)
    if not isinstance(detail, bool):
        raise BadRequest("detail must be true or false", param="detail")
    engine = _ready_engine()
    if not engine.model.generates:
        raise BadRequest(
            "this model generates no text; ask /v1/embeddings or the other routes in /openapi.json",
            code="unsupported",
        )
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
    prompt_tokens, call = sum(map(len, prompts)), current_call()
    call.num_tokens = call.num_prompt_tokens = prompt_tokens
    call.clock = RequestClock(totals, whole_at())
    results = _run(jobs, call.clock)
    generated_tokens = sum(map(_num_tokens, results))
    prompt_tokens = sum(_num_prompt_tokens(item, results) for item in items)
    call.num_prompt_tokens = prompt_tokens
    call.num_tokens = prompt_tokens + generated_tokens
    render = _detail if detail else _plain
    answers = [render(item, results, ask) for item in items]
    totals.tokens(prompt=prompt_tokens, generated=generated_tokens)
    return jsonify(answers)


def _num_tokens(result: Result) -> int:
    if not isinstance(result.outcome, Finished):
        return 0
    return sum(completion.num_tokens for completion in result.outcome.completions)


def _num_prompt_tokens(item: Item, results: list[Result]) -> int:
    """As the engine has counted, where it does; else those that it was given."""
    for index in item.generated:
        outcome = results[index].outcome
        if isinstance(outcome, Finished) and (usage := outcome.completions[0].usage) is not None:
            return usage.prompt_tokens
    return len(item.prompt)


def _read_instances(body: dict[str, Any]) -> list[str]:
    for key in body:
        if key not in BODY_KEYS:
            raise BadRequest(
                f"unknown key {key[:60]!r} in the body{nearest_hint(key, BODY_KEYS)}; "
                f"it takes {', '.join(BODY_KEYS)}{STREAMS if key == 'stream' else ''}",
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
    if params.seed is None or index == 0:
        return params
    return replace(params, seed=nth_seed(params.seed, index))


def _ready_engine() -> Engine:
    replica: Replica = current_app.extensions["gpupool"]
    try:
        return replica.ready_engine()
    except Unavailable:
        if replica.state == "failed":  # just now: the request was sent here as to a ready worker
            call = current_call()
            call.move(call.history.tries)
        raise


def _run(jobs: list[Job], clock: RequestClock) -> list[Result]:
    """On the whole pool, or on the one replica of a host without workers."""
    fanout: Fanout | None = current_app.extensions.get("gpupool.fanout")
    if fanout is not None:
        return fanout.run(jobs, current_call(), clock)
    replica: Replica = current_app.extensions["gpupool"]
    outcomes = run_here(replica, jobs, current_call(), clock)
    return [Result(outcome, replica.slot) for outcome in outcomes]


def _completions(item: Item, results: list[Result], ask: Ask) -> list[tuple[Completion, Result]]:
    """The instance's n completions; raises the error of the first that failed."""
    found: list[tuple[Completion, Result]] = []
    for index in item.generated:
        result = results[index]
        if isinstance(result.outcome, Failed):
            raise result.outcome.error
        assert isinstance(result.outcome, Finished)
        found += [(completion, result) for completion in result.outcome.completions]
    if ask.best_of > ask.n and not ask.beam_search:
        found.sort(key=lambda pair: _cumulative_logprob(pair[0]), reverse=True)
    return found[: ask.n]


def _cumulative_logprob(completion: Completion) -> float:
    return sum(token.logprob for token in completion.logprobs or ())


def _scores(item: Item, results: list[Result]) -> list[float]:
    assert item.scored is not None
    outcome = results[item.scored].outcome
    if isinstance(outcome, Failed):
        raise outcome.error
    assert isinstance(outcome, Scored)
    return [max(value, LOWEST_LOGPROB) for value in outcome.logprobs]


def _plain(item: Item, results: list[Result], ask: Ask) -> Any:
    if ask.score:
        return _scores(item, results)
    texts = [completion.text for completion, _ in _completions(item, results, ask)]
    return texts if ask.n > 1 else texts[0]


def _detail(item: Item, results: list[Result], ask: Ask) -> Any:
    """An object per completion (a list of them for n > 1); an item's error is its own."""
    own = [results[index] for index in item.generated]
    own += [results[item.scored]] if item.scored is not None else []
    common: dict[str, Any] = {"prompt_tokens": _num_prompt_tokens(item, results)} | _where(own[-1])
    try:
        if ask.score:
            common["prompt_logprobs"] = _scores(item, results)
            common["prompt_token_ids"] = list(item.prompt)
        completions = _completions(item, results, ask)
    except RequestError as error:
        _, _, error_body = render_error(error)
        return common | {"text": None} | error_body
    objects = [
        _describe(completion) | common | _where(result) | {"error": None}
        for completion, result in completions
    ]
    if ask.n > 1:
        return objects
    nothing = {"text": "", "finish_reason": "length", "completion_tokens": 0, "logprobs": None}
    return objects[0] if objects else nothing | common | {"error": None}


def _where(result: Result) -> dict[str, Any]:
    return {"replica": result.replica, "tries": result.tries}


def _describe(completion: Completion) -> dict[str, Any]:
    logprobs = completion.logprobs
    return {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "completion_tokens": completion.num_tokens,
        "token_ids": list(completion.token_ids),
        "logprobs": None if logprobs is None else [_token(token) for token in logprobs],
    }


def _token(token: TokenLogprob) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": token.token_id if token.token_id >= 0 else None,
        "token": token.token,
        "logprob": max(token.logprob, LOWEST_LOGPROB),
    }
    if token.top:
        shown["top"] = [_token(other) for other in token.top]
    return shown
