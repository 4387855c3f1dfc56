"""Which fields the OpenAI routes have on llama.cpp, as tables (pure data; worker process).

What llama.cpp does not know it ignores in silence, so nothing is passed on that is not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
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
    TOKENIZE: {},
    DETOKENIZE: {},
}


def fields_of(*, has_embeddings: bool) -> dict[str, frozenset[str]]:
    """By route: the names its body may have."""
    rendered = CHAT_ONLY & {"messages", "tools", "chat_template_kwargs", "add_generation_prompt"}
    known = {
        CHAT: SAMPLED | CHAT_ONLY | IDLE,
        COMPLETIONS: SAMPLED | COMPLETION_ONLY | IDLE,
        RESPONSES: RESPONSES_FIELDS | IDLE,
        EMBEDDINGS: frozenset({"model", "input", "encoding_format"}) | IDLE,
        TOKENIZE: rendered | {"model", "prompt", "add_special_tokens", "return_token_strs"},
        DETOKENIZE: frozenset({"model", "tokens"}),
    }
    if not has_embeddings:
        del known[EMBEDDINGS]
    return {path: names | frozenset(LACKING_ON[path]) for path, names in known.items()}
