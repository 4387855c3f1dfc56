"""Messages, prompts and other texts in request bodies (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
MEDIA = ("image_url", "audio_url", "video_url", "input_audio", "file_url", "source")
"""Fields of a part, or of what a tool has answered, that hold a picture or sound or say where it
is. `source` says so only as an object: documents have one, too."""
TEXT_PARTS = ("text", "input_text", "output_text")
TENSORS = ("image_embeds", "audio_embeds", "video_embeds", "prompt_embeds", "image_pil")
RENDERED = ("messages", "system", "instructions", "tools", "chat_template_kwargs")
"""What a chat template makes one text of."""
FREE = (
    "tools", "tool_choice", "response_format", "structured_outputs", "text", "metadata",
    "chat_template_kwargs", "vllm_xargs",
)  # fmt: skip
"""Fields in which the names are the client's own choice."""


def check_messages(messages: Any) -> None:
    """A conversation; what its parts may be is the model's affair."""
    if not isinstance(messages, list) or not 0 < len(messages) <= MAX_MESSAGES:
        raise BadRequest(f"messages must be a list of 1 to {MAX_MESSAGES}", param="messages")
    for index, message in enumerate(messages):
        param = f"messages[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest(f"{param} must be an object with a role", param=param)
        content = message.get("content")
        for part in content if isinstance(content, list) else [content]:
            if not isinstance(part, str | dict | None) or not _is_text(part):
                raise BadRequest(
                    f"{param}.content has {show(part)}; it takes a string or a list of parts",
                    param=param,
                )
        _check_calls(param, message.get("tool_calls"))


def _is_text(part: Any) -> bool:
    """Whether a part that says it is text has one."""
    if not isinstance(part, dict) or part.get("type") not in TEXT_PARTS:
        return True
    return isinstance(part.get("text"), str)


def _check_calls(param: str, calls: Any) -> None:
    """What the model has called before."""
    if not isinstance(calls, list | None):
        raise BadRequest(f"{param}.tool_calls is {show(calls)}; send a list", param=param)
    for call in calls or ():
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRequest(
                f"{param}.tool_calls has {show(call)}; each names the function that was called",
                param=param,
            )


def check_length(body: dict[str, Any], names: Sequence[str], context_tokens: int) -> None:
    """All that is rendered into one prompt, wherever in these fields it stands."""
    num_chars = sum(_num_chars(body.get(name)) for name in names)
    if num_chars > context_tokens * MAX_CHARS_A_TOKEN:
        param = next(name for name in names if body.get(name))
        raise _too_long(param, f"{num_chars} characters", context_tokens)


def _num_chars(value: Any) -> int:
    """The body's own limit of depth bounds the recursion, here and below."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_num_chars(inner) for name, inner in value.items() if name not in MEDIA)
    return sum(map(_num_chars, value)) if isinstance(value, list) else 0


def check_media(body: dict[str, Any], *, by_url: bool) -> None:
    """Pictures and sounds come with the request, and as such: no address of this network is asked,
    and no tensor unpacked, for a client. By whatever route, and however deep they stand."""
    for name, value in body.items():
        if name in FREE:
            continue
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            param = f"{name}[{index}]" if isinstance(value, list) else name
            for part in _parts_of(item):
                _check_part(param, part, by_url=by_url)


def _parts_of(item: Any) -> Iterator[dict[str, Any]]:
    """A message, a document or a part, and the parts in it. Not the arguments of a call, whose
    names are the tool's."""
    if isinstance(item, list):
        for inner in item:
            if isinstance(inner, list | dict):  # tokens of a prompt may be millions
                yield from _parts_of(inner)
    elif isinstance(item, dict):
        yield item
        for name in ("content", "output"):
            yield from _parts_of(item.get(name))


def _check_part(param: str, part: dict[str, Any], *, by_url: bool) -> None:
    for name in TENSORS:
        if part.get(name) is not None or part.get("type") == name:
            raise BadRequest(
                f"{param} has {name}: tensors from a client; send the content itself",
                param=param,
                code="unsupported",
            )
    for name in MEDIA if not by_url else ():
        media = part.get(name)
        url = media.get("url") if isinstance(media, dict) else media
        if not isinstance(url, str) or (url is media and name == "source"):
            continue
        if not url.startswith("data:"):
            raise BadRequest(
                f"{param} has a {name} that is not a data: URL; this server fetches nothing from "
                "the network for a client, so send the content itself, base64-encoded",
                param=param,
                code="unsupported",
            )


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
