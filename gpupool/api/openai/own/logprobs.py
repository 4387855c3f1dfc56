"""Log-probabilities of tokens as the two APIs write them (pure)."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from openai.types import completion_choice
from openai.types.chat.chat_completion_token_logprob import ChatCompletionTokenLogprob, TopLogprob

from gpupool.api.openai.own.runner import Runner
from gpupool.engines.base import TokenLogprob

LOWEST = -9999.0  # JSON has no minus infinity


class ToldLogprobs(completion_choice.Logprobs):
    """A text's first token has no value, which the type has no word for."""

    token_logprobs: list[float | None]  # type: ignore[assignment]
    top_logprobs: list[dict[str, float] | None]  # type: ignore[assignment]


class CompletionLogprobs:
    """Of one choice of /v1/completions, piece by piece. Offsets count the characters of the whole
    text; a token that goes on with a character has the offset of that character."""

    def __init__(self, runner: Runner, *, by_id: bool) -> None:
        self._runner = runner
        self._by_id = by_id
        self._reader = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def describe(self, tokens: Sequence[TokenLogprob], *, is_start: bool = False) -> ToldLogprobs:
        """The next tokens. The first token of a text has no log-probability: `is_start`."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            piece = self._runner.token_bytes(token.token_id, token.token)
            self._offset += len(self._reader.decode(piece))
        own = [max(token.logprob, LOWEST) for token in tokens]
        best = [self._best(token) for token in tokens]
        unknown = 1 if is_start else 0
        return ToldLogprobs(
            text_offset=offsets,
            token_logprobs=[*[None] * unknown, *own[unknown:]],
            tokens=[self._name(token) for token in tokens],
            top_logprobs=[*[None] * unknown, *best[unknown:]],
        )

    def _best(self, token: TokenLogprob) -> dict[str, float]:
        """The best, and the token itself. Of tokens with one name the better one's value."""
        found: dict[str, float] = {}
        for other in (*token.top, token):
            found.setdefault(self._name(other), max(other.logprob, LOWEST))
        return found

    def _name(self, token: TokenLogprob) -> str:
        return name_of(self._runner, token, by_id=self._by_id)


def name_of(runner: Runner, token: TokenLogprob, *, by_id: bool) -> str:
    """A token's own text: what a tokenizer decodes of one alone may lack the space in front."""
    if by_id:
        return f"token_id:{token.token_id}"
    return runner.token_bytes(token.token_id, token.token).decode("utf-8", "replace")


def describe_chat_token(
    runner: Runner, token: TokenLogprob, *, by_id: bool
) -> ChatCompletionTokenLogprob:
    """One token of a chat's answer."""

    def fields(one: TokenLogprob) -> dict[str, object]:
        return {
            "token": name_of(runner, one, by_id=by_id),
            "bytes": list(runner.token_bytes(one.token_id, one.token)),
            "logprob": max(one.logprob, LOWEST),
        }

    best = [TopLogprob.model_validate(fields(other)) for other in token.top]
    return ChatCompletionTokenLogprob.model_validate(fields(token) | {"top_logprobs": best})
