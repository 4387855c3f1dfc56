"""The OpenAI API of llama.cpp's own server, as an application (worker process, the engine's loop).

llama.cpp's handlers render templates, parse tool calls and compile grammars. What stands in
between gives every sequence its slot, adds up several of them, and stops what nobody waits for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gpupool.engines.base import ModelInfo
from gpupool.engines.llama_cpp_ask import Ask, Part, ask_chat, ask_completion
from gpupool.engines.llama_cpp_fields import (
    CHAT,
    COMPLETIONS,
    DETOKENIZE,
    EMBEDDINGS,
    RERANKS,
    RESPONSES,
    TOKENIZE,
)
from gpupool.engines.llama_cpp_link import LinkBroken, LlamaLink
from gpupool.engines.llama_cpp_reply import Reply
from gpupool.engines.llama_cpp_responses import ResponsesReply, ask_response
from gpupool.engines.llama_cpp_slots import SlotTable
from gpupool.engines.llama_cpp_vectors import Vectors
from gpupool.engines.llama_cpp_vocabulary import Vocabulary
from gpupool.errors import BadRequest, Cancelled, EngineError, RequestError
from gpupool.outgoing import Outgoing
from gpupool.tasks import end_tasks

if TYPE_CHECKING:
    from gpupool.exchange import Message, Receive, Send

log = logging.getLogger(__name__)

Json = dict[str, Any]

EXIT_NOTICE_S = 2.0  # between a broken connection and the news that the process is gone


def leaves(path: str, body: Mapping[str, Any]) -> bool:
    """What the pool's own application does, as llama.cpp does not."""
    return path == COMPLETIONS and bool(body.get("echo"))


@dataclass(frozen=True)
class Model:
    """The loaded model, and the name that answers give it."""

    info: ModelInfo
    name: str
    vocabulary: Vocabulary
    has_tools: bool
    """Whether its chat template tells it of tools."""

    @cached_property
    def control_texts(self) -> list[str]:
        """Of the tokens that a text leaves out."""
        return [self.vocabulary.text(token) for token in sorted(self.vocabulary.control)]


class LlamaOpenAI:
    """An ASGI application; lives as long as its engine. `count` counts what runs here, and
    `note_progress` is called for every step of it."""

    def __init__(
        self,
        link: LlamaLink,
        slots: SlotTable,
        model: Model,
        *,
        count: Callable[[int], None],
        note_progress: Callable[[], None],
    ) -> None:
        self._link = link
        self._slots = slots
        self._model = model
        self._count = count
        self._note_progress = note_progress
        self._vectors = Vectors(link, slots, model.name, note_progress)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers one request, with an error too."""
        await receive()  # The body, which has been parsed.
        answering = asyncio.current_task()
        assert answering is not None
        is_gone = False

        async def watch() -> None:
            nonlocal is_gone
            await receive()
            is_gone = True
            answering.cancel()

        watching = asyncio.create_task(watch())
        self._count(1)
        out = Outgoing(send)
        try:
            await self._answer(scope["path"], scope["state"]["body"], out)
        except asyncio.CancelledError:
            if not is_gone:
                raise
            answering.uncancel()
            raise Cancelled("the client closed the connection") from None
        except RequestError as error:
            await out.fail(error)
        except LinkBroken as error:
            # If the process is gone, all requests are about to be cancelled.
            await asyncio.sleep(EXIT_NOTICE_S)
            log.error("the connection to llama.cpp broke error=%s", error)
            await out.fail(EngineError("the connection to the engine broke; try again"))
        finally:
            self._count(-1)
            watching.cancel()

    async def _answer(self, path: str, body: Json, out: Outgoing) -> None:
        if path == CHAT:
            ask = ask_chat(body, self._model.info, has_tools=self._model.has_tools)
            await self._generate(ask, out)
        elif path == COMPLETIONS:
            ask = ask_completion(body, self._model.info, self._model.control_texts)
            await self._generate(ask, out)
        elif path == RESPONSES:
            await self._respond(body, out)
        elif path == EMBEDDINGS:
            await out.whole(await self._vectors.embed(body))
        elif path in RERANKS:
            await out.whole(await self._vectors.rerank(path, body))
        elif path == TOKENIZE:
            await out.whole(await self._tokenize(body))
        elif path == DETOKENIZE:
            await out.whole(await self._detokenize(body))

    # Sequences.

    async def _generate(self, ask: Ask, out: Outgoing) -> None:
        reply = Reply(ask, self._model.name)
        async with aclosing(self._events(ask)) as events:
            async for index, event in events:
                if not ask.stream:
                    reply.take(index, event)
                elif (chunk := reply.chunk(index, event)) is not None:
                    await out.event(chunk)
        if not reply.is_complete:
            raise LinkBroken("a stream ended before its last event")
        if ask.stream:
            await out.event(reply.usage_chunk())
            await out.done()
        else:
            await out.whole(reply.whole())

    async def _respond(self, body: Json, out: Outgoing) -> None:
        reply = ResponsesReply(body, self._model.info, self._model.name)
        part = ask_response(body, self._model.info, has_tools=self._model.has_tools)
        async with aclosing(self._events_of(RESPONSES, part)) as events:
            async for event in events:
                told = reply.take(event)
                if told is not None and body.get("stream"):
                    await out.event(told, name=told["type"])
        if reply.response is None:
            raise LinkBroken("a stream ended before its last event")
        if body.get("stream"):
            await out.done(b"")
        else:
            await out.whole(reply.response)

    async def _events(self, ask: Ask) -> AsyncGenerator[tuple[int, Json]]:
        """What all sequences tell, as it comes."""
        if len(ask.parts) == 1:
            async with aclosing(self._events_of(ask.path, ask.parts[0])) as events:
                async for event in events:
                    yield 0, event
            return
        told: asyncio.Queue[tuple[int, Json] | asyncio.Task[None]] = asyncio.Queue()

        async def pump(index: int, part: Part) -> None:
            async with aclosing(self._events_of(ask.path, part)) as events:
                async for event in events:
                    told.put_nowait((index, event))

        tasks = [asyncio.create_task(pump(*numbered)) for numbered in enumerate(ask.parts)]
        for task in tasks:
            task.add_done_callback(told.put_nowait)
        num_left = len(tasks)
        try:
            while num_left:
                item = await told.get()
                if isinstance(item, tuple):
                    yield item
                else:
                    item.result()
                    num_left -= 1
        finally:
            await end_tasks(tasks)

    async def _events_of(self, path: str, part: Part) -> AsyncGenerator[Json]:
        """One sequence, in a slot of its own: none waits inside llama.cpp."""
        async with self._slots.hold(part.key) as slot:
            asked = {**part.body, "id_slot": slot.number}
            async with aclosing(self._link.events(path, asked)) as events:
                async for event in events:
                    self._note_progress()
                    yield event

    # Other answers.

    async def _tokenize(self, body: Json) -> Json:
        text, add_special = body.get("prompt"), body.get("add_special_tokens") is not False
        if body.get("messages") is not None:
            names = ("messages", "tools", "chat_template_kwargs", "add_generation_prompt")
            asked = {name: body[name] for name in names if body.get(name) is not None}
            text = (await self._link.ask("/apply-template", asked))["prompt"]
            add_special = True  # as for a chat
        if not isinstance(text, str):
            raise BadRequest("send a text as prompt, or messages", param="prompt")
        found = await self._link.ask(
            "/tokenize", {"content": text, "add_special": add_special, "parse_special": True}
        )
        tokens: list[int] = found["tokens"]
        texts = [self._model.vocabulary.text(token) for token in tokens]
        return {
            "count": len(tokens),
            "max_model_len": self._model.info.context_tokens,
            "tokens": tokens,
            "token_strs": texts if body.get("return_token_strs") else None,
        }

    async def _detokenize(self, body: Json) -> Json:
        tokens, size = body.get("tokens"), self._model.info.vocab_size
        if not isinstance(tokens, list) or not all(
            type(token) is int and 0 <= token < size for token in tokens
        ):
            raise BadRequest(f"tokens must be a list of ids from 0 to {size - 1}", param="tokens")
        found = await self._link.ask("/detokenize", {"tokens": tokens})
        return {"prompt": found["content"]}
