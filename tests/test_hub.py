"""Whether the hub can be asked, without asking it."""

from __future__ import annotations

import socket

import pytest

from gpupool.hub import is_reachable


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_who_listens_is_reachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert is_reachable(f"https://127.0.0.1:{server.getsockname()[1]}")


def test_who_does_not_listen_is_not() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert not is_reachable(f"http://127.0.0.1:{closed.getsockname()[1]}/a/mirror")


def test_behind_a_proxy_only_the_client_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:3128")
    assert is_reachable("http://127.0.0.1:1")
