"""Messages, prompts and other texts in request bodies (pure)."""

from __future__ import annotations

from typing import Any

from gpupool.api.values import show
from gpupool.engines.base import ModelInfo
from gpupool.errors import BadRequest

MAX_MESSAGES = 1024
MAX_TEXTS = 2048
MAX_CHARS_A_TOKEN = 512
"""No tokenizer makes a token of more, so a text that is longer than this many characters for each
token of the context cannot fit; it is refused before its tokenization costs seconds."""
TEXT_FIELDS = ("prompt", "input", "text_1", "text_2", "query", "queries", "documents", "suffix")
MEDIA = ("image_url", "audio_url", "video_url", "input_audio", "source")


def check_messages(messages: Any, context_tokens: int, *, by_url: bool) -> None:
    """A conversation; what its parts may be is the model's affair."""
    if not isinstance(messages, list) or not 0 < len(messages) <= MAX_MESSAGES:
        raise BadRequest(f"messages must be a list of 1 to {MAX_MESSAGES}", param="messages")
    num_chars = 0
    for index, message in enumerate(messages):
        param = f"messages[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest(f"{param} must be an object with a role", param=param)
        content = message.get("content")
        parts = content if isinstance(content, list) else [content]
        for part in parts:
            num_chars += _check_part(param, part, by_url=by_url)
    if num_chars > context_tokens * MAX_CHARS_A_TOKEN:
        raise _too_long("messages", f"{num_chars} characters", context_tokens)


def _check_part(param: str, part: Any, *, by_url: bool) -> int:
    """The number of characters of text in it."""
    if part is None:
        return 0
    if isinstance(part, str):
        return len(part)
    if not isinstance(part, dict):
        raise BadRequest(
            f"{param}.content has {show(part)}; it takes a string or a list of parts", param=param
        )
    for name in MEDIA:
        media = part.get(name)
        url = media.get("url") if isinstance(media, dict) else media
        if isinstance(url, str) and not url.startswith("data:") and not by_url:
            raise BadRequest(
                f"{param} has a {name} that is not a data: URL; this server fetches nothing from "
                "the network for a client, so send the content itself, base64-encoded",
                param=param,
                code="unsupported",
            )
    text = part.get("text")
    return len(text) if isinstance(text, str) else 0


def check_texts(body: dict[str, Any], model: ModelInfo) -> int:
    """How many prompts there are: a document is one, with its query. Each is a string or a list
    of token ids."""
    num_texts = 1
    for name in TEXT_FIELDS:
        value = body.get(name)
        if value is None:
            continue
        many = value if is_many(value) else [value]
        if len(many) > MAX_TEXTS:
            raise BadRequest(
                f"{name} has {len(many)} items; send at most {MAX_TEXTS} in a request", param=name
            )
        for index, text in enumerate(many):
            _check_text(name if many is not value else f"{name}[{index}]", text, model)
        if name in ("prompt", "input", "documents"):
            num_texts = len(many)
    return num_texts


def is_many(value: Any) -> bool:
    """Whether a prompt is a list of prompts, not one of token ids."""
    return isinstance(value, list) and not all(
        isinstance(item, int) and not isinstance(item, bool) for item in value
    )


def _check_text(param: str, text: Any, model: ModelInfo) -> None:
    context = model.context_tokens
    if isinstance(text, str):
        if len(text) > context * MAX_CHARS_A_TOKEN:
            raise _too_long(param, f"{len(text)} characters", context)
    elif isinstance(text, list) and not is_many(text):
        if len(text) > context:
            raise _too_long(param, f"{len(text)} tokens", context)
        if not text:
            raise BadRequest(f"{param} is empty", param=param)
        for token in text:
            if not 0 <= token < model.vocab_size:
                raise BadRequest(
                    f"{param} has {show(token)}; token ids of this model are 0 to "
                    f"{model.vocab_size - 1}",
                    param=param,
                )
    elif not isinstance(text, dict):  # a part of a conversation or a picture
        raise BadRequest(
            f"{param} is {show(text)}; send a string or a list of token ids", param=param
        )


def _too_long(param: str, length: str, context: int) -> BadRequest:
    return BadRequest(
        f"{param} has {length}; this model's context has {context} tokens",
        param=param,
        code="context_length_exceeded",
    )
