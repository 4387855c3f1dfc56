"""One pool of two scripted replicas on Ray, for all tests of a file that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pool import SCRIPTED, Pool
from tests.ray_pool.cluster import START_S, own_network, ray_pool


@pytest.fixture(scope="module", name="pool")
def _pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    flags = (*SCRIPTED, "--num_replicas", "2", "--max_waiting", "4", "--read_timeout_s", "2")
    folder = tmp_path_factory.mktemp("ray")
    with (
        own_network(),
        ray_pool(folder, *flags, "--", "--token-s", "0.02", "--slots", "3") as pool,
    ):
        yield pool.wait_ready(2, deadline_s=START_S)
