"""What each engine can do, as one table (pure data; any process). Shown in docs and in 400s."""

from __future__ import annotations

FEATURES: dict[str, str] = {
    "prompt_logprobs": "log-probabilities of the prompt's tokens",
    "beam_search": "beam search (use_beam_search, best_of, length_penalty, early_stopping)",
    "logprobs": "log-probabilities of generated tokens and the best alternatives",
    "seed": "per-request seeds",
    "stop": "stop strings",
    "stop_token_ids": "stop tokens",
    "ignore_eos": "generate on past the end token",
    "min_tokens": "a minimum number of generated tokens",
    "min_p": "min_p sampling",
    "repetition_penalty": "multiplicative repetition penalty",
    "presence_penalty": "OpenAI presence penalty",
    "frequency_penalty": "OpenAI frequency penalty",
    "logit_bias": "per-token bias",
    "grammar": "text restricted by a JSON schema, a regular expression or a grammar",
    "skip_special_tokens": "keep special tokens in the text (skip_special_tokens: false)",
}

ENGINES: dict[str, frozenset[str]] = {
    "vllm": frozenset(FEATURES),
    "transformers": frozenset(FEATURES),
    "llama_cpp": frozenset(FEATURES) - {"beam_search", "grammar"},
    # What OpenAI's API has a name for. Some hosts can do less, and say so themselves.
    "saas": frozenset(
        {"logprobs", "seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias"}
    ),
}


def engines_with(feature: str) -> list[str]:
    """The engines that honour a feature, for the 400 that refuses it elsewhere."""
    return [name for name, features in ENGINES.items() if feature in features]
