"""POST /tokenize and /detokenize, in vLLM's shape (worker process, event loop)."""

from __future__ import annotations

from gpupool.api.openai.own.chat import render_chat
from gpupool.api.openai.own.prompts import read_prompts
from gpupool.api.openai.own.query import Query
from gpupool.api.openai.own.tools import ToolChoice
from gpupool.api.values import check_token_id, show
from gpupool.engines.base import Decodes
from gpupool.errors import BadRequest


async def answer_tokenize(query: Query) -> None:
    """Of a text, or of a conversation by the model's template."""
    runner, body = query.runner, query.body
    if body.get("messages") is not None:
        tokens = await render_chat(query, ToolChoice("none", body.get("tools")))
    else:
        if not isinstance(body.get("prompt"), str):
            raise BadRequest(f"prompt is {show(body.get('prompt'))}; send a text", param="prompt")
        (prompt,) = await runner.off_loop(read_prompts, runner.engine, body, "prompt")
        tokens = prompt.tokens
    names = None
    if body.get("return_token_strs"):
        if not isinstance(runner.engine, Decodes):
            raise BadRequest(
                "return_token_strs: this pool's engine cannot tell the texts of tokens",
                param="return_token_strs",
                code="unsupported",
            )
        names = [runner.token_bytes(token, "").decode("utf-8", "replace") for token in tokens]
    await query.reply.whole(
        {
            "count": len(tokens),
            "max_model_len": runner.model.context_tokens,
            "tokens": tokens,
            "token_strs": names,
        }
    )


async def answer_detokenize(query: Query) -> None:
    """Special tokens are written out."""
    runner, tokens = query.runner, query.body.get("tokens")
    assert isinstance(runner.engine, Decodes)
    if not isinstance(tokens, list) or len(tokens) > runner.model.context_tokens:
        raise BadRequest(
            f"tokens is {show(tokens)}; send a list of at most {runner.model.context_tokens}",
            param="tokens",
        )
    ids = [check_token_id("tokens", token, runner.model) for token in tokens]
    await query.reply.whole({"prompt": await runner.off_loop(runner.engine.decode, ids)})
