"""POST /v1/chat/completions (worker process, event loop)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from openai.types import CompletionUsage
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionMessageFunctionToolCall,
    chat_completion,
    chat_completion_chunk,
)
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from openai.types.chat.chat_completion_message_function_tool_call import Function
from openai.types.chat.chat_completion_token_logprob import ChatCompletionTokenLogprob

from gpupool.api.openai.own.calls import Reader, reader_for
from gpupool.api.openai.own.conversation import plain_messages, template_options
from gpupool.api.openai.own.logprobs import describe_chat_token
from gpupool.api.openai.own.query import Query
from gpupool.api.openai.own.runner import Work
from gpupool.api.openai.own.sampling import nth, read_sampling, with_length
from gpupool.api.openai.own.tools import ToolChoice, read_tool_choice
from gpupool.api.values import need
from gpupool.engines.base import Chats, Chunk, Completion, Finished, TokenLogprob
from gpupool.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Turn:
    """What runs in the engine, and how its text is read."""

    works: list[Work]  # one per choice
    tool_choice: ToolChoice
    num_prompt: int


async def answer_chat(query: Query) -> None:
    """By the model's own template."""
    engine = query.runner.engine
    assert isinstance(engine, Chats)
    choice = read_tool_choice(query.body, calls_tools=engine.calls_tools)
    prompt = await render_chat(query, choice)
    turn = _read_turn(query, choice, prompt)
    if query.is_stream:
        await _stream(query, turn)
    else:
        await _give_whole(query, turn)


async def render_chat(query: Query, choice: ToolChoice) -> list[int]:
    """The conversation as a prompt."""
    engine = query.runner.engine
    assert isinstance(engine, Chats)
    if not query.body.get("messages"):
        raise BadRequest("messages is missing; send a conversation", param="messages")
    messages = plain_messages(query.body["messages"])
    options = template_options(query.body)
    return await query.runner.off_loop(engine.render, messages, choice.tools, options)


def _read_turn(query: Query, choice: ToolChoice, prompt: list[int]) -> Turn:
    runner, body = query.runner, query.body
    params = read_sampling(body, runner.features, runner.model, choice.grammar)
    if body.get("logprobs"):
        need("logprobs", "logprobs", runner.features)
        params = replace(params, logprobs=body.get("top_logprobs") or 0)
    wanted = body.get("max_completion_tokens") or body.get("max_tokens")
    params = with_length(params, len(prompt), wanted, runner.model, "messages")
    works = [Work("generate", prompt, nth(params, number)) for number in range(query.num_choices)]
    return Turn(works, choice, len(prompt))


async def _give_whole(query: Query, turn: Turn) -> None:
    choices, num_generated = [], 0
    for index, outcome in enumerate(await query.runner.last_events(turn.works)):
        assert isinstance(outcome, Finished)
        (completion,) = outcome.completions
        num_generated += len(completion.token_ids)
        choices.append(_choice(query, turn, index, completion))
    answer = ChatCompletion(
        id=f"chatcmpl-{query.id}",
        object="chat.completion",
        created=query.created,
        model=query.model_name,
        choices=choices,
        usage=_usage(turn.num_prompt, num_generated),
    )
    await query.reply.whole(answer)


def _choice(query: Query, turn: Turn, index: int, completion: Completion) -> chat_completion.Choice:
    reader = reader_for(turn.tool_choice)
    deltas = [*reader.push(completion.text), *reader.finish()]
    logprobs = None
    if completion.logprobs is not None:
        content = _describe(query, completion.logprobs)
        logprobs = chat_completion.ChoiceLogprobs(content=content, refusal=None)
    return chat_completion.Choice.model_validate(
        {
            "index": index,
            "message": _message(deltas),
            "logprobs": logprobs,
            "finish_reason": _reason(turn, reader, completion),
        }
    )


def _message(deltas: Sequence[ChoiceDelta]) -> ChatCompletionMessage:
    content = "".join(delta.content or "" for delta in deltas)
    calls = [
        ChatCompletionMessageFunctionToolCall(
            id=call.id or "",
            type="function",
            function=Function(
                name=call.function.name or "", arguments=call.function.arguments or ""
            ),
        )
        for delta in deltas
        for call in delta.tool_calls or ()
        if call.function is not None
    ]
    if not calls:
        return ChatCompletionMessage(role="assistant", content=content, refusal=None)
    return ChatCompletionMessage(
        role="assistant", content=content or None, refusal=None, tool_calls=list(calls)
    )


def _reason(turn: Turn, reader: Reader, completion: Completion) -> str:
    """A function that was named is no choice of the model's, so its end is a plain stop."""
    has_chosen = reader.num_calls > 0 and turn.tool_choice.kind != "named"
    if has_chosen and completion.finish_reason == "stop":
        return "tool_calls"
    return completion.finish_reason


async def _stream(query: Query, turn: Turn) -> None:
    readers = [reader_for(turn.tool_choice) for _ in turn.works]
    has_begun = [False] * len(readers)
    num_generated = 0

    async def give(
        index: int, delta: ChoiceDelta, tokens: Sequence[TokenLogprob], reason: str | None
    ) -> None:
        if not has_begun[index]:
            has_begun[index] = True
            delta.role = "assistant"
        await query.reply.event(_chunk(query, _chunk_choice(query, index, delta, tokens, reason)))

    async with aclosing(query.runner.events(turn.works)) as events:
        async for index, event in events:
            reader, reason = readers[index], None
            tokens: tuple[TokenLogprob, ...] = ()
            if isinstance(event, Chunk):
                deltas, tokens = reader.push(event.text), event.logprobs
                if tokens and not deltas:
                    deltas = [ChoiceDelta(content="")]
            else:
                assert isinstance(event, Finished)
                (completion,) = event.completions
                num_generated += len(completion.token_ids)
                deltas = [*reader.finish(), ChoiceDelta()]
                reason = _reason(turn, reader, completion)
            for number, delta in enumerate(deltas):
                is_last = number == len(deltas) - 1
                await give(index, delta, () if number else tokens, reason if is_last else None)
    if query.wants_usage:
        await query.reply.event(_chunk(query, usage=_usage(turn.num_prompt, num_generated)))
    await query.reply.done()


def _chunk_choice(
    query: Query, index: int, delta: ChoiceDelta, tokens: Sequence[TokenLogprob], reason: str | None
) -> chat_completion_chunk.Choice:
    logprobs = None
    if tokens:
        content = _describe(query, tokens)
        logprobs = chat_completion_chunk.ChoiceLogprobs(content=content, refusal=None)
    return chat_completion_chunk.Choice.model_validate(
        {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
    )


def _chunk(
    query: Query,
    choice: chat_completion_chunk.Choice | None = None,
    usage: CompletionUsage | None = None,
) -> ChatCompletionChunk:
    told: dict[str, Any] = {} if usage is None else {"usage": usage}
    return ChatCompletionChunk(
        id=f"chatcmpl-{query.id}",
        object="chat.completion.chunk",
        created=query.created,
        model=query.model_name,
        choices=[] if choice is None else [choice],
        **told,
    )


def _describe(query: Query, tokens: Sequence[TokenLogprob]) -> list[ChatCompletionTokenLogprob]:
    by_id = bool(query.body.get("return_tokens_as_token_ids"))
    return [describe_chat_token(query.runner, token, by_id=by_id) for token in tokens]


def _usage(num_prompt: int, num_generated: int) -> CompletionUsage:
    return CompletionUsage(
        prompt_tokens=num_prompt,
        completion_tokens=num_generated,
        total_tokens=num_prompt + num_generated,
    )
