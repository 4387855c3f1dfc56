"""Vectors and ranks of texts, by llama.cpp's own handlers (worker process, the engine's loop).

Every text is a request to llama.cpp of its own, in one of the slots that all requests share.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

from gpupool.engines.llama_cpp_ask import refuse_lacking
from gpupool.engines.llama_cpp_fields import EMBEDDINGS, RERANKS
from gpupool.engines.llama_cpp_link import LlamaLink
from gpupool.engines.llama_cpp_slots import SlotTable
from gpupool.engines.llama_cpp_uses import Uses
from gpupool.errors import BadRequest, EngineError
from gpupool.tasks import end_tasks

Json = dict[str, Any]


class Vectors:
    """Lives as long as its engine; `model_name` is what answers say, and `note_progress` is called
    for every text that is done."""

    def __init__(
        self,
        link: LlamaLink,
        slots: SlotTable,
        model_name: str,
        note_progress: Callable[[], None],
    ) -> None:
        self._link = link
        self._slots = slots
        self._model_name = model_name
        self._note_progress = note_progress
        self._one_text = asyncio.Lock()

    # Vectors.

    async def embed(self, body: Json) -> Json:
        """The answer of /v1/embeddings."""
        refuse_lacking(EMBEDDINGS, body)
        given = body.get("input")
        if not given:
            raise BadRequest("input is missing", param="input")
        is_one = isinstance(given, str) or isinstance(given[0], int)
        encoding = body.get("encoding_format") or "float"
        if encoding not in ("float", "base64"):
            raise BadRequest(
                f"encoding_format is {str(encoding)[:60]!r}; it must be float or base64",
                param="encoding_format",
            )
        answers = await _together(
            [self._embed_one(text, encoding) for text in ([given] if is_one else given)]
        )
        return {
            "object": "list",
            "model": self._model_name,
            "data": [
                {"object": "embedding", "index": index, "embedding": answer["data"][0]["embedding"]}
                for index, answer in enumerate(answers)
            ],
            "usage": _usage(answers),
        }

    async def _embed_one(self, text: str | list[int], encoding: str) -> Json:
        # Texts of different lengths side by side would be computed in steps of the same length,
        # and llama.cpp would take the mean of the longer one over its last step alone.
        async with self._one_text:
            return await self._ask(EMBEDDINGS, {"input": text, "encoding_format": encoding})

    # Ranks.

    async def rerank(self, path: str, body: Json) -> Json:
        """The answer of /v1/rerank and its other names, the best document first."""
        refuse_lacking(path, body)
        query, documents = _read_query(body), _read_documents(body)
        # Not as one request, of which llama.cpp would run the documents in all of its slots.
        answers = await _together([self._rank_one(query, text) for text in documents])
        scores = [_score(answer) for answer in answers]
        best = sorted(range(len(documents)), key=scores.__getitem__, reverse=True)
        results: list[Json] = [{"index": index, "relevance_score": scores[index]} for index in best]
        if body.get("return_documents") is not False:
            for result in results:
                result["document"] = {"text": documents[result["index"]]}
        return {
            "id": f"rerank-{uuid.uuid4().hex}",
            "model": self._model_name,
            "usage": _usage(answers),
            "results": results[: body.get("top_n") or None],
        }

    async def _rank_one(self, query: str, text: str) -> Json:
        return await self._ask(RERANKS[0], {"query": query, "documents": [text]})

    # Both.

    async def _ask(self, path: str, asked: Json) -> Json:
        async with self._slots.hold(b""):
            found = await self._link.ask(path, asked)
        self._note_progress()
        return found


def first_ask(uses: Uses) -> tuple[str, Json]:
    """Path and body of what a model that generates nothing is asked before all else."""
    if uses.ranks:
        return RERANKS[0], {"query": "Hello", "documents": ["Hello"]}
    return EMBEDDINGS, {"input": "Hello", "encoding_format": "float"}


def _read_query(body: Json) -> str:
    query = body.get("query")
    if not isinstance(query, str) or not query:
        raise BadRequest("query is missing; it must be a text", param="query")
    return query


def _read_documents(body: Json) -> list[str]:
    given = body.get("documents")
    documents = [given] if isinstance(given, str) else given
    if not isinstance(documents, list) or not documents:
        raise BadRequest("documents is missing; it must be a list of texts", param="documents")
    for index, text in enumerate(documents):
        if not isinstance(text, str):
            raise BadRequest(
                f"documents[{index}] must be a text; this pool's engine ranks nothing else",
                param=f"documents[{index}]",
                code="unsupported",
            )
    return documents


def _score(answer: Json) -> float:
    score = answer["results"][0]["relevance_score"]
    if not isinstance(score, float | int):
        raise EngineError("the model gives a document a score that is no number")
    return score


def _usage(answers: list[Json]) -> Json:
    num_tokens = sum(answer["usage"]["prompt_tokens"] for answer in answers)
    return {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


async def _together(work: list[Coroutine[Any, Any, Json]]) -> list[Json]:
    """All results; the first that fails ends the others."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await end_tasks(tasks)
