"""By path, who answers (worker process). Importing it takes a second, and tens of megabytes: the
openai package brings its client along with its types.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from gpupool.api.openai.own.chat import answer_chat
from gpupool.api.openai.own.completions import answer_completions
from gpupool.api.openai.own.embeddings import answer_embeddings
from gpupool.api.openai.own.query import Query
from gpupool.api.openai.own.tokens import answer_detokenize, answer_tokenize

HANDLERS: dict[str, Callable[[Query], Awaitable[None]]] = {
    "/v1/completions": answer_completions,
    "/v1/chat/completions": answer_chat,
    "/v1/embeddings": answer_embeddings,
    "/tokenize": answer_tokenize,
    "/detokenize": answer_detokenize,
}
