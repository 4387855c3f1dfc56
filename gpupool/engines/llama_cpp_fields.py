"""Which fields the OpenAI routes have on llama.cpp, as tables (pure data; worker process).

What llama.cpp does not know it ignores in silence, so nothing is passed on that is not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpupool.engines.llama_cpp_uses import Uses

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
RERANKS = ("/v1/rerank", "/v2/rerank", "/rerank")
TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"

IDLE = frozenset({"user", "metadata", "service_tier", "prompt_cache_key", "safety_identifier"})
"""Of OpenAI's own house; they ask nothing of an engine."""

SAMPLED = frozenset(
    {
        "model",
        "stream",
        "stream_options",
        "n",
        "best_of",
        "seed",
        "stop",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "logit_bias",
        "logprobs",
        "max_tokens",
        "ignore_eos",
        "response_format",
        "structured_outputs",
        "grammar",
        "json_schema",
    }
)
"""What completions and chats have in common and llama.cpp does, under this name or another."""

CHAT_ONLY = frozenset(
    {
        "messages",
        "max_completion_tokens",
        "top_logprobs",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "reasoning_effort",
        "reasoning_format",
        "chat_template_kwargs",
        "add_generation_prompt",
        "continue_final_message",
    }
)
COMPLETION_ONLY = frozenset({"prompt", "skip_special_tokens"})

RESPONSES_FIELDS = frozenset(
    {
        "model",
        "input",
        "instructions",
        "stream",
        "seed",
        "stop",
        "temperature",
        "top_p",
        "top_k",
        "max_output_tokens",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "text",
        "reasoning",
        "chat_template_kwargs",
        # Nothing is kept, whatever is asked here; OpenAI's clients leave it to a default of true.
        "store",
    }
)

NOTHING: tuple[Any, ...] = (None, False, 0, "", [], {})
LACKING: dict[str, tuple[Any, ...]] = {
    "store": NOTHING,
    "use_beam_search": NOTHING,
    "length_penalty": (None, 1),
    "min_tokens": NOTHING,
    "stop_token_ids": NOTHING,
    "bad_words": NOTHING,
    "allowed_token_ids": (None,),
    "include_stop_str_in_output": NOTHING,
    "prompt_logprobs": (None,),
    "truncate_prompt_tokens": (None,),
    "return_token_ids": NOTHING,
    "return_tokens_as_token_ids": NOTHING,
    "spaces_between_special_tokens": (None, True),
    "priority": NOTHING,
    "echo": NOTHING,
}
"""What other engines do and llama.cpp's handlers do not: its values that ask for nothing."""
CHAT_LACKING = {
    "skip_special_tokens": (None, True),
    "add_special_tokens": (None, False),
    "documents": NOTHING,
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "verbosity": (None,),
    "web_search_options": (None,),
    "functions": NOTHING,
    "function_call": (None, "auto", "none"),
    "include_reasoning": (None, True),
}
COMPLETION_LACKING = {"suffix": NOTHING, "add_special_tokens": (None, True)}
RERANK_LACKING: dict[str, tuple[Any, ...]] = {
    "truncate_prompt_tokens": (None,),
    "max_tokens_per_query": NOTHING,
    "max_tokens_per_doc": NOTHING,
    "instruction": NOTHING,
    "chat_template_kwargs": NOTHING,
    "use_activation": (None, False),
    "priority": NOTHING,
}

LACKING_ON: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    CHAT: LACKING | CHAT_LACKING,
    COMPLETIONS: LACKING | COMPLETION_LACKING,
    RESPONSES: {
        "include": NOTHING,
        "truncation": (None, "disabled"),
        "top_logprobs": NOTHING,
        "max_tool_calls": (None,),
        "prompt": (None,),
        "conversation": (None,),
        "stream_options": (None, {}),
    },
    EMBEDDINGS: {
        "dimensions": (None,),
        "truncate_prompt_tokens": (None,),
        "add_special_tokens": (None, True),
        "priority": NOTHING,
    },
    **dict.fromkeys(RERANKS, RERANK_LACKING),
    TOKENIZE: {},
    DETOKENIZE: {},
}


def fields_of(uses: Uses) -> dict[str, frozenset[str]]:
    """By route: the names its body may have."""
    rendered = CHAT_ONLY & {"messages", "tools", "chat_template_kwargs", "add_generation_prompt"}
    known = {
        TOKENIZE: rendered | {"model", "prompt", "add_special_tokens", "return_token_strs"},
        DETOKENIZE: frozenset({"model", "tokens"}),
    }
    if uses.generates:
        known[CHAT] = SAMPLED | CHAT_ONLY | IDLE
        known[COMPLETIONS] = SAMPLED | COMPLETION_ONLY | IDLE
        known[RESPONSES] = RESPONSES_FIELDS | IDLE
    if uses.embeds:
        known[EMBEDDINGS] = frozenset({"model", "input", "encoding_format"}) | IDLE
    if uses.ranks:
        ranked = frozenset({"model", "query", "documents", "top_n", "return_documents"})
        known |= dict.fromkeys(RERANKS, ranked | IDLE)
    return {path: names | frozenset(LACKING_ON[path]) for path, names in known.items()}


def absent_routes(uses: Uses) -> dict[str, str]:
    """By route that is not there: what its model, or its pool, would have to be."""
    absent = dict.fromkeys(
        RERANKS, "it needs a model that ranks, in a pool started with `-- --reranking`"
    )
    absent[EMBEDDINGS] = "it needs a pool started with `-- --embedding`"
    if not uses.generates:
        reason = "this pool's model does not generate: it is there for " + (
            RERANKS[0] if uses.ranks else EMBEDDINGS
        )
        absent |= dict.fromkeys((CHAT, COMPLETIONS, RESPONSES), reason)
    return {path: reason for path, reason in absent.items() if path not in fields_of(uses)}
