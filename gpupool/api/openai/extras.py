"""Lists of tokens and words, and objects of names that a client chooses (pure)."""

from __future__ import annotations

from typing import Any

from gpupool.api.values import MAX_STOP_CHARS, check_token_id, show
from gpupool.engines.base import ModelInfo
from gpupool.errors import BadRequest

MAX_BAD_WORDS = 128
TOKENS = ("tokens", "allowed_token_ids", "logprob_token_ids")
OBJECTS: dict[str, tuple[str, ...]] = {
    "stream_options": (),
    # What goes into the engine as it is.
    "vllm_xargs": ("kv_transfer_params", "ec_transfer_params"),
    # The template's variables share their object with the arguments of who renders it.
    "chat_template_kwargs": ("chat_template", "tokenize", "return_dict", "return_tensors"),
}
"""With the names that are not for a client to write in them."""


def check_extra(name: str, value: Any, model: ModelInfo) -> None:
    """BadRequest for a value that cannot be; a field that is none of these is not checked."""
    if name in TOKENS:
        _check_tokens(name, value, model)
    elif name == "bad_words":
        _check_bad_words(value)
    elif name in OBJECTS:
        _check_object(name, value)


def _check_tokens(name: str, value: Any, model: ModelInfo) -> None:
    if not isinstance(value, list):
        raise BadRequest(f"{name} is {show(value)}; send a list of token ids", param=name)
    if name != "tokens" and len(value) > model.vocab_size:
        raise BadRequest(
            f"{name} has {len(value)} items; this model has {model.vocab_size} tokens", param=name
        )
    for item in value:
        check_token_id(name, item, model)


def _check_bad_words(value: Any) -> None:
    if not isinstance(value, list) or len(value) > MAX_BAD_WORDS:
        raise BadRequest(
            f"bad_words must be a list of at most {MAX_BAD_WORDS} strings", param="bad_words"
        )
    if not all(isinstance(word, str) and 0 < len(word) <= MAX_STOP_CHARS for word in value):
        raise BadRequest(
            f"bad_words takes strings of 1 to {MAX_STOP_CHARS} characters", param="bad_words"
        )


def _check_object(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise BadRequest(f"{name} is {show(value)}; send an object", param=name)
    for inner in OBJECTS[name]:
        if inner in value:
            raise BadRequest(
                f"{name} has {inner!r}, which is not for a client to say",
                param=name,
                code="unsupported",
            )
