"""A batch over several replicas, without Ray: engines in this process, asked in turn."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gpupool.app import create_app
from gpupool.batch import Job, Result
from gpupool.call import Call
from gpupool.clock import RequestClock
from gpupool.engines.base import Finished, Report, SamplingParams
from gpupool.errors import Cancelled, EngineDead, Unavailable
from gpupool.partition import Slice
from gpupool.ray_pool.piece import Piece, PieceResult, run_piece
from gpupool.ray_pool.spread import MAX_BATCHES, Spread
from gpupool.replica import Replica
from gpupool.settings import Settings
from gpupool.totals import PoolTotals
from tests.engines.scripted import ScriptedEngine
from tests.pool import wait_until

TOTALS = PoolTotals(1)[0]
SETTINGS = Settings(model_name="M", engine_args=("--token-s", "0.002", "--slots", "2"))


def boot(gpu_slice: Slice, settings: Settings, report: Report) -> ScriptedEngine:
    engine = ScriptedEngine(settings, gpu_slice)
    engine.load(report)
    return engine


def replica(rank: int) -> Replica:
    made: Replica = create_app(boot).extensions["gpupool"]
    made.load(Slice(rank, (), ()), SETTINGS)
    return made


class Cluster:
    """Replicas; each piece goes to the one with the fewest, and dies where it is told to."""

    def __init__(self, num_replicas: int) -> None:
        self.replicas = [replica(rank) for rank in range(num_replicas)]
        self.spread = Spread(self.replicas[0], self.ask, max_wait_s=1)
        self.spread.at_once = 2 * num_replicas
        self.spread.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.spread.loop.run_forever)
        self._thread.start()
        self.deaths: dict[bytes, int] = {}
        """How many replicas die under a prompt, from now on."""
        self.asked: list[bytes] = []
        self.num_refusals = 0
        self.most_dying = 0
        self._dying = 0

    async def ask(self, piece: Piece) -> PieceResult:
        prompt = bytes(piece.job.prompt)  # type: ignore[union-attr]
        self.asked.append(prompt)
        if self.num_refusals:
            self.num_refusals -= 1
            raise Unavailable("full")
        if self.deaths.get(prompt):
            self.deaths[prompt] -= 1
            if not self.deaths[prompt]:  # its last
                self._dying += 1
                self.most_dying = max(self.most_dying, self._dying)
                await asyncio.sleep(0.02)
                self._dying -= 1
            raise EngineDead("died")
        idlest = min(self.replicas, key=lambda found: found.engine.num_inflight())  # type: ignore[union-attr]
        return await run_piece(idlest, TOTALS, piece)

    def run(
        self, prompts: list[str], call: Call | None = None, max_tokens: int = 3
    ) -> list[Result]:
        params = SamplingParams(max_tokens=max_tokens)
        jobs = [Job("generate", list(prompt.encode()), params) for prompt in prompts]
        clock = RequestClock(TOTALS, time.monotonic())
        return self.spread.run(jobs, call or Call(), clock)

    def num_inflight(self) -> int:
        return sum(found.engine.num_inflight() for found in self.replicas if found.engine)

    def close(self) -> None:
        assert self.spread.loop is not None
        self.spread.loop.call_soon_threadsafe(self.spread.loop.stop)
        self._thread.join()
        self.spread.loop.close()
        for found in self.replicas:
            found.close()


@pytest.fixture(name="cluster")
def _cluster() -> Iterator[Cluster]:
    cluster = Cluster(3)
    yield cluster
    cluster.close()


def texts(results: list[Result]) -> list[str]:
    return [
        found.outcome.completions[0].text
        if isinstance(found.outcome, Finished)
        else type(found.outcome.error).__name__  # type: ignore[union-attr]
        for found in results
    ]


def test_a_batch_runs_on_all_replicas_and_is_in_order(cluster: Cluster) -> None:
    prompts = [f"{index:03}" for index in range(60)]
    results = cluster.run(prompts)
    assert texts(results) == prompts
    assert {found.replica for found in results} == {0, 1, 2}
    assert {found.tries for found in results} == {1}


def test_no_more_are_on_their_way_than_there_are_slots(cluster: Cluster) -> None:
    now = most = 0

    async def ask(piece: Piece) -> PieceResult:
        nonlocal now, most
        now += 1
        most = max(most, now)
        found = await cluster.ask(piece)
        now -= 1
        return found

    cluster.spread._ask = ask
    cluster.run(["ab"] * 30)
    assert most == 6


def test_an_item_whose_replica_dies_is_run_again_alone(cluster: Cluster) -> None:
    cluster.deaths = {b"bb": 2}
    results = cluster.run(["aa", "bb", "cc"])
    assert texts(results) == ["aaa", "bbb", "ccc"]
    assert [found.tries for found in results] == [1, 3, 1]
    assert sorted(cluster.asked) == [b"aa", b"bb", b"bb", b"bb", b"cc"]


def test_an_item_that_kills_three_replicas_fails_alone(cluster: Cluster) -> None:
    cluster.deaths = {b"bb": 9}
    results = cluster.run(["aa", "bb", "cc"])
    assert texts(results) == ["aaa", "EngineDead", "ccc"]
    assert cluster.asked.count(b"bb") == 3


def test_items_that_may_kill_replicas_run_one_at_a_time(cluster: Cluster) -> None:
    cluster.deaths = {bytes([97 + index]) * 2: 3 for index in range(4)}
    results = cluster.run(["aa", "bb", "cc", "dd"])
    assert texts(results) == ["EngineDead"] * 4
    assert cluster.most_dying == 1


def test_an_item_waits_for_a_replica_that_can_take_it(cluster: Cluster) -> None:
    cluster.num_refusals = 3
    results = cluster.run(["aa", "bb"])
    assert texts(results) == ["aaa", "bbb"]
    assert {found.tries for found in results} == {1}


def test_an_item_that_waited_its_time_is_a_503(cluster: Cluster) -> None:
    cluster.num_refusals = 1_000
    assert texts(cluster.run(["aa", "bb"])) == ["Unavailable"] * 2


def test_a_client_that_leaves_ends_all_items(cluster: Cluster) -> None:
    call = Call()
    hanging_up = threading.Timer(0.2, call.hang_up)
    hanging_up.start()
    with pytest.raises(Cancelled):
        cluster.run(["ab"] * 50, call, max_tokens=900)
    wait_until(lambda: not cluster.num_inflight(), 1, "the end of all items")


class OneSlot:
    """Counts as Serve does."""

    def __init__(self) -> None:
        self.count = 1

    def take(self, count: int = 1) -> None:
        self.count += count

    def give_back(self, count: int = 1) -> None:
        self.count -= count


@pytest.mark.parametrize(("num_items", "held"), [(1, 1), (2, 0)], ids=["one", "batch"])
def test_who_coordinates_holds_no_slot(cluster: Cluster, num_items: int, held: int) -> None:
    slot = OneSlot()
    cluster.run(["ab"] * num_items, Call(slot))
    assert slot.count == held


def test_more_batches_than_there_are_threads_for_run_where_they_are(cluster: Cluster) -> None:
    with _taken(cluster.spread):
        results = cluster.run(["ab"] * 4)
    assert {found.replica for found in results} == {0}
    assert not cluster.asked
    assert len({found.replica for found in cluster.run(["ab"] * 12)}) == 3


@contextmanager
def _taken(spread: Spread) -> Iterator[None]:
    for _ in range(MAX_BATCHES):
        spread._seats.acquire()
    yield
    for _ in range(MAX_BATCHES):
        spread._seats.release()
