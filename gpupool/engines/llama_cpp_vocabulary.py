"""The tokens of a GGUF model as bytes (worker process; immutable, any thread).

llama.cpp's server tells neither which tokens are special nor which tokens made up a character
that took several; both are answered from here.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache, lru_cache

from gpupool.gguf_file import GgufModel

CONTROL, BYTE = 3, 6  # values of tokenizer.ggml.token_type
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how sentencepiece writes one


class Vocabulary:
    """All tokens of one model, from its metadata."""

    def __init__(self, model: GgufModel) -> None:
        self._tokens: list[bytes] = model.metadata.get("tokenizer.ggml.tokens", [])
        kinds = model.metadata.get("tokenizer.ggml.token_type", [])
        self._kinds = dict(enumerate(kinds))
        self._is_byte_level = model.metadata.get("tokenizer.ggml.model") == "gpt2"
        self.control = frozenset(token for token, kind in enumerate(kinds) if kind == CONTROL)
        self.text = lru_cache(maxsize=1 << 16)(self._decode)
        self._broken: dict[bytes, list[int]] = defaultdict(list)
        for token in range(len(self._tokens)):
            piece = self.piece(token)
            if not _is_text(piece):
                self._broken[piece].append(token)

    def __len__(self) -> int:
        return len(self._tokens)

    def piece(self, token: int) -> bytes:
        """The bytes that a token adds to a text."""
        written = self._tokens[token]
        if token in self.control:
            return written
        if self._kinds.get(token) == BYTE:
            return bytes([int(written[3:5], 16)])  # "<0xE2>"
        text = written.decode("utf-8", "replace")
        if not self._is_byte_level:
            return text.replace(SPACE, " ").encode()
        known = byte_of_character()
        return b"".join(known.get(char, char.encode()) for char in text)

    def _decode(self, token: int) -> str:
        return self.piece(token).decode("utf-8", "replace")

    def ends_within_character(self, token: int) -> bool:
        """Whether a text of this token alone would end in the middle of a character."""
        piece = self.piece(token)
        for length in range(1, min(3, len(piece)) + 1):
            lead = piece[-length]
            if lead & 0xC0 != 0x80:
                return lead >= 0xC0 and length < (2 + (lead >= 0xE0) + (lead >= 0xF0))
        return False

    def split(self, text: bytes, last: int, num_before: int) -> list[int]:
        """The `num_before` tokens in front of `last` that make up `text` with it.

        Longer tokens are preferred, as by the model's own tokenizer. Empty if there are none.
        """
        ending = self.piece(last)
        if not text.endswith(ending):
            return []
        return self._split(text[: len(text) - len(ending)], num_before) or []

    def _split(self, text: bytes, count: int) -> list[int] | None:
        if count == 0:
            return None if text else []
        for length in range(len(text), 0, -1):
            for token in self._broken.get(text[:length], ()):
                rest = self._split(text[length:], count - 1)
                if rest is not None:
                    return [token, *rest]
        return None


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


@cache
def byte_of_character() -> dict[str, bytes]:
    """GPT-2's printable stand-ins for bytes, reversed: printable Latin-1 stands for itself,
    the other bytes for the characters from 256 on, in order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    found = {chr(byte): bytes([byte]) for byte in plain}
    return found | {chr(256 + place): bytes([byte]) for place, byte in enumerate(others)}
