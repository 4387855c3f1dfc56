"""POST /v1/embeddings (worker process, event loop)."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Any

from openai.types import CreateEmbeddingResponse, Embedding
from openai.types.create_embedding_response import Usage

from gpupool.api.openai.own.prompts import read_prompts
from gpupool.api.openai.own.query import Query
from gpupool.api.openai.own.runner import Work
from gpupool.api.values import show
from gpupool.engines.base import Embedded
from gpupool.errors import BadRequest

FORMATS = ("float", "base64")


async def answer_embeddings(query: Query) -> None:
    """One vector for each input, in order."""
    runner, body = query.runner, query.body
    encoding = body.get("encoding_format") or "float"
    if encoding not in FORMATS:
        raise BadRequest(
            f"encoding_format is {show(encoding)}; it is one of {', '.join(FORMATS)}",
            param="encoding_format",
        )
    if body.get("dimensions") is not None:
        raise BadRequest(
            "dimensions: this model's vectors cannot be cut; leave it out",
            param="dimensions",
            code="unsupported",
        )
    prompts = await runner.off_loop(read_prompts, runner.engine, body, "input")
    for prompt in prompts:
        if len(prompt.tokens) > runner.model.context_tokens:
            raise BadRequest(
                f"{prompt.param} has {len(prompt.tokens)} tokens; this model's context has "
                f"{runner.model.context_tokens}",
                param=prompt.param,
                code="context_length_exceeded",
            )
    outcomes = await runner.last_events([Work("embed", prompt.tokens) for prompt in prompts])
    vectors = [outcome.vector for outcome in outcomes if isinstance(outcome, Embedded)]
    num_tokens = sum(len(prompt.tokens) for prompt in prompts)
    await query.reply.whole(
        CreateEmbeddingResponse(
            object="list",
            model=query.model_name,
            data=[_describe(index, vector, encoding) for index, vector in enumerate(vectors)],
            usage=Usage(prompt_tokens=num_tokens, total_tokens=num_tokens),
        )
    )


def _describe(index: int, vector: Sequence[float], encoding: str) -> Embedding:
    """The package's type knows no base64, which its client asks for."""
    shown: Any = list(vector)
    if encoding == "base64":
        shown = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    return Embedding.model_construct(object="embedding", index=index, embedding=shown)
