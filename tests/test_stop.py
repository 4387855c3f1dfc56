from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupool.engines.stop import StopFinder


def feed(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    """What goes out of the pieces, and whether a stop string was met."""
    finder, out = StopFinder(stops), ""
    for piece in pieces:
        text, is_stopped = finder.push(piece)
        out += text
        if is_stopped:
            return out, True
    return out + finder.flush(), False


def test_stop_inside_one_piece_is_cut_off() -> None:
    assert feed(["END"], ["one ENDtwo"]) == ("one ", True)


def test_stop_that_spans_pieces_is_cut_off() -> None:
    assert feed(["</answer>"], ["42</", "ans", "wer>", "more"]) == ("42", True)


def test_text_that_may_become_a_stop_is_held_back() -> None:
    assert StopFinder(["\n\n"]).push("line\n") == ("line", False)


def test_text_that_did_not_become_a_stop_goes_out() -> None:
    assert feed(["\n\n"], ["line\n", "next"]) == ("line\nnext", False)


def test_held_text_goes_out_at_the_end() -> None:
    assert feed(["abc"], ["xab"]) == ("xab", False)


def test_stop_that_begins_inside_a_failed_beginning_is_found() -> None:
    assert feed(["aab"], ["aa", "ab", "c"]) == ("a", True)


def test_earliest_of_several_stops_wins() -> None:
    assert feed(["later", "soon"], ["very soon, not later"]) == ("very ", True)


def test_longest_possible_beginning_is_held_back() -> None:
    finder = StopFinder(["b!", "ab?"])
    assert finder.push("xab") == ("x", False)


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    pieces=st.lists(st.text("ab", max_size=3), max_size=8),
)
def test_cut_into_pieces_is_the_same_as_whole(stops: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    found = [end for end in range(len(text) + 1) if any(text[:end].endswith(s) for s in stops)]
    out, is_stopped = feed(stops, pieces)
    assert is_stopped == bool(found)
    if is_stopped:
        assert text.startswith(out)
        assert any(text[len(out) :].startswith(stop) for stop in stops)
        assert not any(stop in out for stop in stops)
    else:
        assert out == text


@pytest.mark.parametrize("stops", [[], ["zzz"]], ids=["none", "never met"])
def test_text_without_a_stop_passes(stops: list[str]) -> None:
    assert feed(stops, ["a", "b"]) == ("ab", False)
