"""Who has a key of the pool."""

from __future__ import annotations

import pytest

from gpupool.keys import KeyRing

KEYS = KeyRing(("right", "another"))


@pytest.mark.parametrize(
    "header", ["Bearer right", "Bearer another", "bearer right", "Bearer  right "]
)
def test_each_key_fits(header: str) -> None:
    assert KEYS.fits(header)


@pytest.mark.parametrize(
    "header",
    ["", "right", "Bearer", "Bearer ", "Bearer r", "Bearer righ", "Bearer rightly", "Basic right"],
)
def test_nothing_but_a_whole_key_fits(header: str) -> None:
    assert not KEYS.fits(header)


def test_without_keys_everybody_may_ask() -> None:
    assert KeyRing(()).fits("")


def test_the_header_is_found_among_the_others() -> None:
    assert KEYS.fit([("HOST", "x"), ("AUTHORIZATION", "Bearer right")])
    assert not KEYS.fit([("HOST", "x"), ("COOKIE", "Bearer right")])
