from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from gpupool.engines.detokenizer import CONTEXT_TOKENS, WINDOW_TOKENS, Detokenizer

TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=3 * WINDOW_TOKENS
)


def decode_bytes(tokens: Sequence[int]) -> str:
    """A tokenizer with a token per byte, as all tokenizers have for rare characters."""
    return bytes(tokens).decode("utf-8", "replace")


def decode_words(tokens: Sequence[int]) -> str:
    """A tokenizer that writes no space before the first word of a text, as SentencePiece."""
    return " ".join(f"w{token}" for token in tokens)


def push_all(text: bytes, prompt: bytes = b"") -> list[str]:
    detokenizer = Detokenizer(decode_bytes, list(prompt))
    return [detokenizer.push(token) for token in text]


def test_character_split_over_tokens_goes_out_whole() -> None:
    assert push_all("é€".encode()) == ["", "é", "", "", "€"]


def test_incomplete_character_at_the_end_is_never_given() -> None:
    assert "".join(push_all("ok🙂".encode()[:-1])) == "ok"


def test_character_begun_in_the_prompt_goes_out_whole() -> None:
    euro = "€".encode()
    assert push_all(euro[1:], prompt=b"price " + euro[:1]) == ["", "€"]


def test_prompt_is_not_repeated() -> None:
    assert "".join(push_all(b"world", prompt=b"hello ")) == "world"


def test_space_between_prompt_and_completion_is_kept() -> None:
    detokenizer = Detokenizer(decode_words, [1, 2])
    assert detokenizer.push(3) == " w3"


def test_invalid_bytes_do_not_hold_text_back_for_ever() -> None:
    assert any(push_all(b"\xff" * 12))


@given(TEXT)
def test_pieces_make_the_text(text: str) -> None:
    assert "".join(push_all(text.encode(), prompt=b"Prompt: ")) == text


@given(TEXT)
def test_no_piece_has_a_broken_character(text: str) -> None:
    assert not any("\ufffd" in piece for piece in push_all(text.encode()))


def test_work_of_a_token_does_not_grow_with_the_text() -> None:
    longest = 0

    def decode(tokens: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return decode_bytes(tokens)

    detokenizer = Detokenizer(decode, [])
    for token in b"a" * 1000:
        detokenizer.push(token)
    assert longest <= WINDOW_TOKENS + CONTEXT_TOKENS
