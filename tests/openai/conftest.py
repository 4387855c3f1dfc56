"""One front for all tests of a module that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.openai.own import Api, serving


@pytest.fixture(scope="module", name="api")
def _api() -> Iterator[Api]:
    with serving() as api:
        yield api
