"""POST /v1/completions (worker process, event loop)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Literal

from openai.types import Completion, CompletionChoice, CompletionUsage

from gpupool.api.openai.own.logprobs import CompletionLogprobs, ToldLogprobs
from gpupool.api.openai.own.prompts import Prompt, read_prompts
from gpupool.api.openai.own.query import Query
from gpupool.api.openai.own.runner import Runner, Work
from gpupool.api.openai.own.sampling import nth, read_sampling, with_length
from gpupool.api.values import need
from gpupool.engines import base
from gpupool.engines.base import Chunk, Decodes, Finished, SamplingParams, Scored, TokenLogprob
from gpupool.errors import BadRequest

DEFAULT_MAX_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of one choice."""

    text: str
    logprobs: ToldLogprobs | None


class ToldChoice(CompletionChoice):
    """In a stream a choice that goes on has no reason of its end, which the type lacks."""

    finish_reason: Literal["stop", "length"] | None  # type: ignore[assignment]


class Choice:
    """One completion of one prompt; choices are numbered prompt by prompt."""

    def __init__(self, index: int, prompt: Prompt, params: SamplingParams) -> None:
        self.index = index
        self.prompt = prompt
        self.params = params
        self.echoed: Piece | None = None
        self.logprobs: CompletionLogprobs | None = None

    def describe(self, text: str, tokens: Sequence[TokenLogprob] | None) -> Piece:
        """A part of the completion."""
        if self.logprobs is None or tokens is None:
            return Piece(text, None)
        return Piece(text, self.logprobs.describe(tokens))


async def answer_completions(query: Query) -> None:
    """Echoed prompts are scored first; then all choices run together."""
    runner, body = query.runner, query.body
    prompts = await runner.off_loop(read_prompts, runner.engine, body, "prompt")
    choices = _plan(query, prompts)
    if body.get("echo"):
        await _echo(query, prompts, choices)
    works = [
        Work("generate", choice.prompt.tokens, choice.params)
        for choice in choices
        if choice.params.max_tokens
    ]
    if query.is_stream:
        await _stream(query, choices, works)
    else:
        await _give_whole(query, choices, works)


def _plan(query: Query, prompts: list[Prompt]) -> list[Choice]:
    runner, body = query.runner, query.body
    params = read_sampling(body, runner.features, runner.model)
    if body.get("logprobs") is not None:
        need("logprobs", "logprobs", runner.features)
        params = replace(params, logprobs=body["logprobs"])
    wanted = body.get("max_tokens")
    found: list[Choice] = []
    for prompt in prompts:
        num_tokens = len(prompt.tokens)
        room = runner.model.context_tokens - num_tokens
        length = min(DEFAULT_MAX_TOKENS, room) if wanted is None and room > 0 else wanted
        of_prompt = with_length(params, num_tokens, length, runner.model, prompt.param)
        for number in range(query.num_choices):
            choice = Choice(len(found), prompt, nth(of_prompt, number))
            if params.logprobs is not None:
                by_id = bool(body.get("return_tokens_as_token_ids"))
                choice.logprobs = CompletionLogprobs(runner, by_id=by_id)
            found.append(choice)
    return found


# Echoed prompts.


async def _echo(query: Query, prompts: list[Prompt], choices: list[Choice]) -> None:
    runner = query.runner
    texts = await runner.off_loop(_texts_of, runner, prompts)
    scores: Sequence[base.LastEvent | None] = [None] * len(prompts)
    num_top = query.body.get("logprobs")
    if num_top is not None:
        need("prompt_logprobs", "echo with logprobs", runner.features)
        if not isinstance(runner.engine, Decodes):
            raise BadRequest(
                "echo with logprobs: this pool's engine cannot tell the texts of tokens; "
                "/infer has prompt_logprobs",
                param="echo",
                code="unsupported",
            )
        works = [Work("score", prompt.tokens, num_top=num_top) for prompt in prompts]
        scores = await runner.last_events(works)
    for choice in choices:
        number = choice.index // query.num_choices
        choice.echoed = _echoed(choice, texts[number], scores[number])


def _texts_of(runner: Runner, prompts: list[Prompt]) -> list[str]:
    """On a thread."""
    found = []
    for prompt in prompts:
        if prompt.text is not None:
            found.append(prompt.text)
        elif isinstance(runner.engine, Decodes):
            found.append(runner.engine.decode(prompt.tokens))
        else:
            raise BadRequest(
                "echo of token ids: this pool's engine cannot tell their text; send the text",
                param="echo",
                code="unsupported",
            )
    return found


def _echoed(choice: Choice, text: str, score: base.LastEvent | None) -> Piece:
    if choice.logprobs is None or not isinstance(score, Scored):
        return Piece(text, None)
    best = score.top or ((),) * len(score.logprobs)
    rows = zip(choice.prompt.tokens, (0.0, *score.logprobs), ((), *best), strict=True)
    tokens = [TokenLogprob(token, "", value, top) for token, value, top in rows]
    return Piece(text, choice.logprobs.describe(tokens, is_start=True))


# Answers.


async def _give_whole(query: Query, choices: list[Choice], works: list[Work]) -> None:
    outcomes = iter(await query.runner.last_events(works))
    described, num_generated = [], 0
    for choice in choices:
        pieces = [choice.echoed] if choice.echoed is not None else []
        reason = "length"
        if choice.params.max_tokens:
            outcome = next(outcomes)
            assert isinstance(outcome, Finished)
            (completion,) = outcome.completions
            pieces.append(choice.describe(completion.text, completion.logprobs))
            reason = completion.finish_reason
            num_generated += len(completion.token_ids)
        described.append(_choice(choice, _joined(pieces), reason))
    usage = _usage(choices, query.num_choices, num_generated)
    await query.reply.whole(_answer(query, described, usage))


async def _stream(query: Query, choices: list[Choice], works: list[Work]) -> None:
    running = [choice for choice in choices if choice.params.max_tokens]
    num_generated = 0
    for choice in choices:
        if choice.echoed is not None:
            reason = None if choice.params.max_tokens else "length"
            await query.reply.event(_answer(query, [_choice(choice, choice.echoed, reason)]))
    async with aclosing(query.runner.events(works)) as events:
        async for number, event in events:
            choice, reason, piece = running[number], None, Piece("", None)
            if isinstance(event, Chunk):
                piece = choice.describe(event.text, event.logprobs or None)
                if not piece.text and piece.logprobs is None:
                    continue
            elif isinstance(event, Finished):
                (completion,) = event.completions
                reason = completion.finish_reason
                num_generated += len(completion.token_ids)
            await query.reply.event(_answer(query, [_choice(choice, piece, reason)]))
    if query.wants_usage:
        usage = _usage(choices, query.num_choices, num_generated)
        await query.reply.event(_answer(query, [], usage))
    await query.reply.done()


def _joined(pieces: Sequence[Piece]) -> Piece:
    if len(pieces) == 1:
        return pieces[0]
    text = "".join(piece.text for piece in pieces)
    parts = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    if not parts:
        return Piece(text, None)
    names = ("text_offset", "token_logprobs", "tokens", "top_logprobs")
    lists: dict[str, Any] = {
        name: [item for part in parts for item in getattr(part, name)] for name in names
    }
    return Piece(text, ToldLogprobs(**lists))


def _choice(choice: Choice, piece: Piece, reason: str | None) -> CompletionChoice:
    return ToldChoice.model_validate(
        {
            "index": choice.index,
            "text": piece.text,
            "logprobs": piece.logprobs,
            "finish_reason": reason,
        }
    )


def _usage(choices: list[Choice], num_choices: int, num_generated: int) -> CompletionUsage:
    num_prompt = sum(len(choice.prompt.tokens) for choice in choices[::num_choices])
    return CompletionUsage(
        prompt_tokens=num_prompt,
        completion_tokens=num_generated,
        total_tokens=num_prompt + num_generated,
    )


def _answer(
    query: Query, choices: list[CompletionChoice], usage: CompletionUsage | None = None
) -> Completion:
    told: dict[str, Any] = {} if usage is None else {"usage": usage}
    return Completion(
        id=f"cmpl-{query.id}",
        object="text_completion",
        created=query.created,
        model=query.model_name,
        choices=list(choices),
        **told,
    )
