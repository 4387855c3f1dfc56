"""What the tests of hosted models have in common."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpupool.engines import saas_host
from tests.saas.host import Host


@pytest.fixture(name="host")
def _host() -> Iterator[Host]:
    with Host() as host:
        yield host


@pytest.fixture(name="short_pauses")
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a request to a host and the next try."""
    monkeypatch.setattr(saas_host, "FIRST_PAUSE_S", 0.01)
