"""Who may ask, by what a request says of itself."""

from __future__ import annotations

import pytest

from gpupool.errors import BadRequest, Forbidden
from gpupool.sender import check_sender

PAGE = "https://page.example"
HTTP = (1, 1)


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1:5002", "[::1]:5002", "[fe80::1]", "box-7.lab_net.example:80", ""],
)
def test_every_name_and_address_is_a_host(host: str) -> None:
    check_sender("POST", HTTP, [("HOST", host)], ())


@pytest.mark.parametrize(
    "host",
    [
        "localhost/v1/models?",
        "a b",
        "a@b",
        "a:port",
        "a:123456",
        "[::1",
        "a#b",
        "a\\b",
        "é.example",
    ],
)
def test_what_could_be_read_as_part_of_an_address_is_no_host(host: str) -> None:
    with pytest.raises(BadRequest):
        check_sender("GET", HTTP, [("HOST", host)], ())


def test_only_an_old_client_may_leave_the_host_out() -> None:
    check_sender("GET", (1, 0), [], ())
    with pytest.raises(BadRequest):
        check_sender("GET", HTTP, [], ())


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (PAGE, "127.0.0.1:5002"),
        ("null", "127.0.0.1:5002"),
        ("http://127.0.0.1:8000", "127.0.0.1:5002"),
        ("https://127.0.0.1:5002", "127.0.0.1:5002"),
        ("http://evil.example:5002", "evil.example:5002"),  # a name that points here by their will
        ("http://localhost.evil.example", "localhost.evil.example"),
        ("http://127.0.0.1.evil.example", "127.0.0.1.evil.example"),
        ("", "127.0.0.1:5002"),
    ],
)
def test_a_page_that_nobody_named_may_not_ask(origin: str, host: str) -> None:
    with pytest.raises(Forbidden, match="--cors_origin"):
        check_sender("POST", HTTP, [("HOST", host), ("ORIGIN", origin)], (PAGE + ".au",))


@pytest.mark.parametrize("host", ["127.0.0.1:5002", "localhost:5002", "[::1]:5002", "10.0.0.7"])
def test_a_page_of_the_pool_may_ask(host: str) -> None:
    check_sender("POST", HTTP, [("HOST", host), ("ORIGIN", f"http://{host}")], ())


@pytest.mark.parametrize("origins", [(PAGE,), ("*",)])
def test_a_named_page_may_ask(origins: tuple[str, ...]) -> None:
    check_sender("POST", HTTP, [("HOST", "a"), ("ORIGIN", PAGE)], origins)


def test_a_page_may_look_for_what_it_could_not_read() -> None:
    check_sender("GET", HTTP, [("HOST", "a"), ("ORIGIN", PAGE)], ())
