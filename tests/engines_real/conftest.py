"""What the tests of engines share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engines_real.transformers_engine import Client, loaded_engine


@pytest.fixture(scope="package")
def transformers_client() -> Iterator[Client]:
    """Of an engine as it comes; no test may leave it other than it found it."""
    with loaded_engine() as engine:
        yield Client(engine)
