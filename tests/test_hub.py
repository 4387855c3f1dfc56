"""Whether the hub can be asked, without asking it."""

from __future__ import annotations

import socket

import pytest

from gpupool.hub import PROXIES, is_reachable


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


def test_who_listens_is_reachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert is_reachable(f"https://127.0.0.1:{server.getsockname()[1]}")


def test_who_does_not_listen_is_not() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert not is_reachable(f"http://127.0.0.1:{closed.getsockname()[1]}/a/mirror")


@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_is_asked_in_place_of_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv(name, f"127.0.0.1:{server.getsockname()[1]}")
        assert is_reachable("https://hub.invalid")
    assert not is_reachable("https://hub.invalid")


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:port", "http://127.0.0.1:99999", "http://", ""]
)
def test_what_is_no_address_is_not_reachable(endpoint: str) -> None:
    assert not is_reachable(endpoint)
