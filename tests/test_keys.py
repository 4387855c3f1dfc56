"""Who has a key of the pool."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from gpupool.errors import ConfigError, Unauthorized
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


def test_the_header_of_other_clients_fits_too() -> None:
    assert KEYS.fits("", "right")
    assert not KEYS.fits("", "wrong")
    assert not KEYS.fits("Bearer wrong", "right")


def test_without_keys_everybody_may_ask() -> None:
    assert KeyRing(()).fits("")


def test_the_header_is_found_among_the_others() -> None:
    assert KEYS.fit([("HOST", "x"), ("AUTHORIZATION", "Bearer right")])
    assert KEYS.fit([("HOST", "x"), ("X-API-KEY", "right")])
    assert not KEYS.fit([("HOST", "x"), ("COOKIE", "Bearer right")])


def test_a_refusal_says_whether_a_key_was_sent() -> None:
    for given, said in {"": "needs an API key", "Bearer wrong": "sent is not known"}.items():
        with pytest.raises(Unauthorized, match=said) as caught:
            KEYS.require(given)
        assert "wrong" not in str(caught.value)
        assert caught.value.headers == {"WWW-Authenticate": "Bearer"}


def test_the_id_of_a_key_is_the_beginning_of_its_hash() -> None:
    assert KEYS.id_of([("X-API-KEY", "right")]) == sha256(b"right").hexdigest()[:8]
    assert KeyRing(()).id_of([("X-API-KEY", "right")]) == ""


# The file.


def test_keys_come_from_a_file_plain_or_hashed(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# of the lab\nplain\n\nsha256:{sha256(b'hashed').hexdigest()}\n")
    keys = KeyRing(("given",), path)
    assert all(keys.fits(f"Bearer {key}") for key in ("plain", "hashed", "given"))
    assert not keys.fits("Bearer # of the lab")
    assert not keys.fits(f"Bearer sha256:{sha256(b'hashed').hexdigest()}")


def test_a_key_is_given_and_taken_away_while_the_pool_runs(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("old\n")
    keys = KeyRing((), path)
    path.write_text("newer\n")
    assert keys.fits("Bearer newer")
    assert not keys.fits("Bearer old")


@pytest.mark.parametrize("content", [None, "", "# nothing\n"])
def test_a_file_that_is_gone_or_empty_opens_nothing(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "keys"
    path.write_text("old\n")
    keys = KeyRing((), path)
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    assert not keys.fits("")
    assert keys.fits("Bearer old")


@pytest.mark.parametrize("content", [None, "", "# nothing\n", "schlüssel\n"])
def test_a_file_without_keys_is_refused_at_the_start(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="--api_key_file"):
        KeyRing((), path)
