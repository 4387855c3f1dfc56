"""Replicas on a real Ray whose number follows the load."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from gpupool.ray_pool import serve_inside
from tests.pool import SCRIPTED, Pool, wait_until
from tests.ray_pool.cluster import START_S, own_network, ray_pool, require_ray
from tests.ray_pool.load import Load

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(400)]


def num_ready(pool: Pool) -> int:
    return int(pool.get("/readyz")[1]["ready"])


def test_replicas_come_and_go_with_the_load_and_no_request_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (*SCRIPTED, "--num_replicas", "auto", "--max_replicas", "3", "--downscale_delay_s", "5")
    with own_network(), ExitStack() as stack:
        pool = ray_pool(tmp_path, *flags, "--", "--token-s", "0.02", "--slots", "4")
        stack.enter_context(pool)
        pool.wait_ready(deadline_s=START_S)
        began = time.monotonic()
        with Load(pool, num_clients=16) as heavy:
            wait_until(lambda: num_ready(pool) == 3, 90, "three replicas")
            up_s = time.monotonic() - began
            status, answer = pool.post(
                "/infer", {"instances": ["ab"] * 200, "params": {"max_tokens": 4}, "detail": True}
            )
        assert status == 200
        assert {item["replica"] for item in answer} == {0, 1, 2}
        began = time.monotonic()
        with Load(pool, num_clients=1) as light:
            wait_until(lambda: num_ready(pool) == 1, 90, "one replica")
            down_s = time.monotonic() - began
            wait_until(lambda: len(pool.workers()) == 1, 30, "nothing of the two others")
        with capsys.disabled():
            print(f"\n1 to 3 replicas in {up_s:.0f} s, back in {down_s:.0f} s")
        assert not heavy.lost
        assert not light.lost


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's, as it is imported
def test_who_leaves_ends_a_batch_that_has_given_its_slot_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whom Serve ends, and who coordinates, no test can choose; so here is Ray's class alone."""
    require_ray()
    from ray.serve._private.replica import Replica

    class Options:
        graceful_shutdown_wait_loop_s = 0.01

    class Idle:
        _deployment_config = Options()

        def get_num_ongoing_requests(self) -> int:
            return 0

    async def leave() -> None:
        leaving = asyncio.create_task(Replica._drain_ongoing_requests(Idle()))
        await asyncio.sleep(0.3)
        assert not leaving.done()
        serve_inside._leaving.clear()
        await asyncio.wait_for(leaving, 5)

    # Put back what it is, in the end.
    monkeypatch.setattr(Replica, "_drain_ongoing_requests", Replica._drain_ongoing_requests)
    monkeypatch.setattr(serve_inside, "_leaving", {"a batch": lambda: None})
    serve_inside.end_after_batches()
    asyncio.run(leave())
