"""Tokens -> text while they arrive (worker process; one thread per object). Imports no library.

A token may hold a part of a character, and some tokenizers write the same token differently at
the start of a text. So a short window of tokens is decoded again with each new one, and text
goes out only once no later token can change it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[list[int]], str]

BROKEN = "\N{REPLACEMENT CHARACTER}"
CONTEXT_TOKENS = 6  # kept before the new tokens, so that spaces between words come out right
WINDOW_TOKENS = 24  # decoded at each step at most, unless characters stay incomplete
MAX_INCOMPLETE_TOKENS = 8  # no character takes more tokens; beyond, the bytes are really invalid


class Detokenizer:
    """The text of one sequence. `prompt` is the text before it, which is never returned."""

    def __init__(self, decode: Decode, prompt: Sequence[int]) -> None:
        self._decode = decode
        self._window = list(prompt[-CONTEXT_TOKENS:])
        # A character that the prompt begins and the completion ends goes out whole.
        self._given = decode(self._window).rstrip(BROKEN) if self._window else ""
        self._num_incomplete = 0

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        self._window.append(token)
        text = self._decode(self._window)
        if text.endswith(BROKEN) and self._num_incomplete < MAX_INCOMPLETE_TOKENS:
            self._num_incomplete += 1
            return ""
        self._num_incomplete = 0
        new, self._given = text[len(self._given) :], text
        if len(self._window) > WINDOW_TOKENS:
            self._window = self._window[-CONTEXT_TOKENS:]
            self._given = self._decode(self._window)
        return new
