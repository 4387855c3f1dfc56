"""Text and tokens of one model of transformers (worker process, any thread)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from gpupool.engines.base import SamplingParams
from gpupool.engines.llama_cpp_vocabulary import SPACE, byte_of_character
from gpupool.errors import BadRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TEMPLATE_MESSAGE = 300  # characters of a template's own message in a 400


class ModelText:
    """The tokenizer of a loaded model, and its chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.end_tokens: tuple[int, ...] = ()
        self.token_text = lru_cache(maxsize=1 << 16)(self._decode_one)
        self.token_bytes = lru_cache(maxsize=1 << 16)(self._bytes_of)
        self._special = frozenset(tokenizer.all_special_ids)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._is_byte_level = "ByteLevel" in repr(getattr(backend, "decoder", None))
        # The first call settles truncation and padding; later ones then change nothing and so
        # may run on many threads.
        self.tokenize("settle")

    def tokenize(self, text: str) -> list[int]:
        """With the model's special tokens."""
        tokens: list[int] = self._tokenizer(text, verbose=False)["input_ids"]
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Special tokens are written out."""
        return self.decoder(SamplingParams(skip_special_tokens=False))(list(tokens))

    def decoder(self, params: SamplingParams) -> Callable[[list[int]], str]:
        """As one request wants its text."""
        skip = params.skip_special_tokens

        def decode(tokens: list[int]) -> str:
            # Cleaning up spaces changes text that has gone out already.
            text = self._tokenizer.decode(
                tokens, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
            return str(text)

        return decode

    def ends(self, params: SamplingParams) -> tuple[int, ...]:
        """The tokens that end a completion."""
        own = () if params.ignore_eos else self.end_tokens
        return tuple(sorted({*own, *params.stop_token_ids}))

    def _decode_one(self, token: int) -> str:
        return str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))

    def _bytes_of(self, token: int) -> bytes:
        written = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(written, str):  # a row of the vocabulary without a token
            return b""
        if token in self._special:
            return written.encode()
        if self._is_byte_level:
            known = byte_of_character()
            return b"".join(known.get(char, char.encode()) for char in written)
        if len(written) == 6 and written.startswith("<0x"):
            return bytes([int(written[3:5], 16)])
        return written.replace(SPACE, " ").encode()

    # Conversations.

    @property
    def calls_tools(self) -> bool:
        """Whether the template writes calls of tools as Hermes' models do."""
        return "<tool_call>" in self._template()

    def _template(self) -> str:
        template = self._tokenizer.chat_template
        return template if isinstance(template, str) else str(template or "")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        options: Mapping[str, Any],
    ) -> list[int]:
        """See engines.base.Chats."""
        if not self._template():
            raise BadRequest(
                "this model has no chat template; use /v1/completions", code="unsupported"
            )
        _refuse_arguments(self._tokenizer.apply_chat_template, options)
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] if tools else None,
                tokenize=False,
                **options,
            )
        except Exception as error:
            # The template is the model's own program, and its messages are about the request.
            reason = " ".join(str(error).split())[:MAX_TEMPLATE_MESSAGE]
            raise BadRequest(
                f"the model's chat template refuses these messages: {reason}", param="messages"
            ) from error
        tokens: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return tokens


def _refuse_arguments(render: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """The template's variables share one list of arguments with the library's own."""
    own = set(inspect.signature(render).parameters)
    own -= {"add_generation_prompt", "continue_final_message", "documents"}
    for name in options:
        if name in own:
            raise BadRequest(
                f"chat_template_kwargs has {name!r}, which is not a variable of the template",
                param="chat_template_kwargs",
            )
