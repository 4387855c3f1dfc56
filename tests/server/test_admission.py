"""Who runs a request in a pool of several workers: fair, patient, honest when full."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import os
import signal
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import scrape
from tests.pool import SCRIPTED, Pool, wait_until
from tests.server.load import Load, Watch

pytestmark = [pytest.mark.server, pytest.mark.quiet]


@pytest.fixture(scope="module", name="fair")
def _fair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Four workers with slots to spare; ten tokens take 200 ms."""
    flags = (*SCRIPTED, "--workers", "4", "--", "--token-s", "0.02", "--slots", "32")
    with Pool(tmp_path_factory.mktemp("fair"), *flags) as pool:
        yield pool.wait_ready(workers=4)


def test_kept_alive_clients_are_spread_evenly(fair: Pool) -> None:
    with Load(fair, 16, max_tokens=10) as load:
        wait_until(lambda: load.statuses[200] >= 32, 10, "the first answers")
        watch = Watch(fair).look(4)
    assert not load.faults
    print(f"busiest/ideal {watch.busiest_over_ideal():.3f} idle {watch.idle_share():.4f}")
    assert watch.busiest_over_ideal() <= 1.15
    assert watch.idle_share() <= 0.02
    assert watch.longest_idle_s() <= 0.1


def test_a_worker_that_came_back_gets_its_part_of_kept_alive_clients(fair: Pool) -> None:
    victim = fair.workers()[1]["pid"]
    with Load(fair, 32, max_tokens=10) as load:
        wait_until(lambda: load.statuses[200] >= 64, 10, "the first answers")
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: fair.workers()[1]["pid"] not in (None, victim), 20, "a successor")
        fair.wait_ready(workers=4)
        wait_until(lambda: fair.workers()[1]["inflight"] >= 4, 5, "its first requests")
        watch = Watch(fair).look(4)
    assert len(load.faults) <= 9  # what the dead worker had, and what was just being read
    print(f"busiest/ideal {watch.busiest_over_ideal():.3f} idle {watch.idle_share():.4f}")
    assert watch.busiest_over_ideal() <= 1.15
    assert watch.idle_share() <= 0.02
    assert watch.longest_idle_s() <= 0.1


class Owned:
    """A kept-alive connection that one worker reads: the one that answered it last."""

    def __init__(self, pool: Pool) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", pool.port, timeout=30)
        self.worker = self.ask("a", max_tokens=1)

    def __enter__(self) -> Owned:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def send(self, prompt: str, max_tokens: int, padding: int = 0) -> None:
        """Ask without waiting for the answer."""
        self._prompt, self._max_tokens = prompt, max_tokens
        params = {"max_tokens": max_tokens}
        body = {"instances": [prompt], "params": params, "detail": True}
        self._connection.request("POST", "/infer", json.dumps(body) + " " * padding)

    def ask(self, prompt: str, max_tokens: int, padding: int = 0) -> int:
        """Which worker answered."""
        self.send(prompt, max_tokens, padding)
        return self.answered()

    def answered(self) -> int:
        """Which worker did, in the end."""
        [item] = json.load(self._connection.getresponse())
        assert item["text"] == (self._prompt * self._max_tokens)[: self._max_tokens]
        return int(item["replica"])

    def leave(self, *, unless: Owned) -> None:
        """Close the connection, if it is not that one."""
        if self is not unless:
            self._connection.close()


def of_one_worker(clients: list[Owned]) -> tuple[int, *tuple[Owned, ...]]:
    """The worker that reads most of them, and those."""
    worker = statistics.mode(client.worker for client in clients)
    return worker, *(client for client in clients if client.worker == worker)


def test_a_request_with_a_large_body_goes_whole_to_another_worker(fair: Pool) -> None:
    with contextlib.ExitStack() as opened:
        clients = [opened.enter_context(Owned(fair)) for _ in range(5)]  # more than workers
        busy, runner, guest, *_ = of_one_worker(clients)
        runner.send("long", max_tokens=900)
        wait_until(lambda: fair.workers()[busy]["inflight"] == 1, 5, "a busy worker")
        assert guest.ask("abc", max_tokens=3, padding=1_000_000) != busy


@pytest.fixture(scope="module", name="narrow")
def _narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Two workers with two slots each, and room for four more."""
    flags = (*SCRIPTED, "--workers", "2", "--max_waiting", "4", "--max_wait_s", "30")
    engine = ("--", "--token-s", "0.02", "--slots", "2")
    with Pool(tmp_path_factory.mktemp("narrow"), *flags, *engine) as pool:
        yield pool.wait_ready(workers=2)


def total(pool: Pool, what: str) -> int:
    return sum(worker[what] for worker in pool.workers())


def test_more_than_the_slots_wait_and_are_answered_in_their_order(narrow: Pool) -> None:
    done: list[int] = []

    def ask(number: int) -> None:
        assert narrow.infer("abc", max_tokens=60) == ["abc" * 20]
        done.append(number)

    with concurrent.futures.ThreadPoolExecutor(12) as threads:
        for number in range(12):
            threads.submit(ask, number)
            wait_until(lambda n=number: total(narrow, "inflight") > n, 5, "its arrival")
    assert sorted(done) == list(range(12))
    for number in range(4, 12):  # nobody overtakes by more than one round of the slots
        assert abs(done.index(number) - number) <= 4


def test_who_waits_longer_at_another_worker_goes_first(narrow: Pool) -> None:
    done: list[str] = []

    def note(client: Owned, name: str) -> None:
        client.answered()
        done.append(name)

    with contextlib.ExitStack() as opened, concurrent.futures.ThreadPoolExecutor(7) as threads:
        clients = [opened.enter_context(Owned(narrow)) for _ in range(14)]
        there, *ours = of_one_worker(clients)
        theirs = next(client for client in clients if client.worker != there)
        # A worker keeps what it reads while it is as idle as the other, so the long ones run there.
        for number, name in enumerate(["long", "short", "long", "short", "older", "old"]):
            client = ours[number]
            client.send("abc", max_tokens={"long": 150, "short": 50}.get(name, 3))
            threads.submit(note, client, name)
            wait_until(lambda n=number: total(narrow, "inflight") > n, 5, "its arrival")
        assert narrow.workers()[there]["waiting"] == 2
        time.sleep(0.2)
        theirs.send("abc", max_tokens=3)
        note(theirs, "young")
    assert done.index("older") < done.index("young") > done.index("old")


def test_slots_are_never_overfilled(narrow: Pool) -> None:
    with Load(narrow, 10, max_tokens=5) as load:
        wait_until(lambda: load.statuses[200] >= 20, 10, "the first answers")
        running = []
        for _ in range(200):
            workers = narrow.workers()
            running += [worker["inflight"] - worker["waiting"] for worker in workers]
    assert not load.faults
    assert max(running) <= 2
    assert statistics.mean(running) > 1.6


def test_a_full_room_is_told_at_once_to_clients_that_try_again(narrow: Pool) -> None:
    with Load(narrow, 12, max_tokens=10):
        wait_until(lambda: total(narrow, "waiting") >= 4, 5, "a full room")
        seconds = []
        for _ in range(20):
            began = time.monotonic()
            connection = http.client.HTTPConnection("127.0.0.1", narrow.port, timeout=10)
            connection.request("POST", "/v1/completions", "{}")
            response = connection.getresponse()
            body = json.load(response)
            connection.close()
            seconds.append(time.monotonic() - began)
            assert response.status == 429, body
            assert int(response.headers["Retry-After"]) >= 1
            assert body["error"]["code"] == "overloaded"
            assert response.headers["X-Request-Id"]
    told = scrape.total(
        scrape.scrape(narrow), "gpupool_requests_total", status="429", reason="full"
    )
    assert told >= 20
    print(f"told within {statistics.median(seconds):.4f} s, at the most {max(seconds):.4f}")
    assert statistics.quantiles(seconds, n=10)[8] <= 0.05


def test_a_full_room_does_not_refuse_infer(narrow: Pool) -> None:
    with Load(narrow, 20, max_tokens=5) as load:
        wait_until(lambda: load.statuses[200] >= 60, 20, "sixty answers")
    assert set(load.statuses) == {200}
    assert not load.faults


def test_ten_times_overload_costs_no_goodput_and_no_probe(narrow: Pool) -> None:
    answered = {}
    probes = []
    for num_clients in (4, 40):
        with Load(narrow, num_clients, max_tokens=25) as load:
            wait_until(lambda load=load: load.statuses[200] >= 8, 10, "the first answers")
            before, began = load.statuses[200], time.monotonic()
            while time.monotonic() - began < 4:
                asked = time.monotonic()
                assert narrow.get("/livez")[0] == 200
                probes.append(time.monotonic() - asked)
                time.sleep(0.02)
            answered[num_clients] = load.statuses[200] - before
        assert not load.faults
    print(f"answered with 4 and with 40 clients: {answered}")
    assert answered[40] >= 0.9 * answered[4]
    assert statistics.quantiles(probes, n=100)[98] <= 0.1


def test_infer_that_waited_its_time_for_a_slot_is_a_429(tmp_path: Path) -> None:
    flags = (*SCRIPTED, "--max_wait_s", "0.5", "--", "--token-s", "0.1", "--slots", "1")
    with Pool(tmp_path, *flags) as pool, concurrent.futures.ThreadPoolExecutor(1) as threads:
        pool.wait_ready()
        first = threads.submit(pool.infer, "a", max_tokens=30)
        wait_until(lambda: total(pool, "inflight") == 1, 5, "the first request")
        status, body = pool.post("/infer", {"instances": "b"})
        assert status == 429
        assert body["error"]["code"] == "overloaded"
        assert first.result() == ["a" * 30]


def test_a_client_that_leaves_while_it_waits_leaves_the_room(narrow: Pool) -> None:
    with Load(narrow, 4, max_tokens=40):
        wait_until(lambda: total(narrow, "inflight") >= 4, 5, "full slots")
        client = narrow.send_infer(["abc"], max_tokens=5)
        wait_until(lambda: total(narrow, "waiting") == 1, 5, "a waiting request")
        client.close()
        wait_until(lambda: total(narrow, "waiting") == 0, 0.5, "its end")


def test_a_request_that_is_sent_ahead_does_not_pass_for_a_hangup(narrow: Pool) -> None:
    with narrow.send_infer(["abc"], max_tokens=30) as client:
        wait_until(lambda: total(narrow, "inflight") == 1, 5, "a running request")
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(client) == ["abc" * 10]


def read_answer(client: socket.socket) -> Any:
    client.settimeout(5)
    response = http.client.HTTPResponse(client)
    response.begin()
    return json.load(response)


@pytest.mark.parametrize("rounds", [13, pytest.param(250, marks=pytest.mark.slow)])
@pytest.mark.timeout(600)
def test_clients_that_leave_give_back_slots_and_threads(narrow: Pool, rounds: int) -> None:
    pid = narrow.workers()[0]["pid"]
    narrow.infer("warm", max_tokens=1)
    for round_number in range(rounds):
        clients = [narrow.send_infer(["abc"], max_tokens=900) for _ in range(4)]
        wait_until(lambda: total(narrow, "inflight") == 4, 5, "four running requests")
        for client in clients:
            client.close()
        wait_until(lambda: total(narrow, "inflight") == 0, 0.5, "free slots")
        if round_number == 5:
            before = (len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd")))
    after = (len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd")))
    assert after[0] <= before[0] + 2
    assert after[1] <= before[1] + 2


def test_a_stopping_pool_answers_all_that_came(narrow: Pool, tmp_path: Path) -> None:
    flags = (*SCRIPTED, "--workers", "2", "--", "--token-s", "0.02", "--slots", "2")
    with Pool(tmp_path, *flags) as pool:
        pool.wait_ready(workers=2)
        clients = [pool.send_infer(["abc"], max_tokens=10) for _ in range(40)]
        wait_until(lambda: total(pool, "waiting") >= 10, 5, "waiting requests")
        assert pool.stop() == 0
        for client in clients:
            with client:
                assert read_answer(client) == ["abcabcabca"]
    assert narrow.get("/livez")[0] == 200


@pytest.mark.parametrize("size", [0, 5, 60, 100], ids=["nothing", "a line", "a head", "a body"])
def test_a_connection_outlives_its_worker_however_much_it_has_sent(fair: Pool, size: int) -> None:
    body = json.dumps({"instances": ["abc"], "params": {"max_tokens": 3}})
    head = f"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    request = f"{head}{body}".encode()
    before = {worker["pid"] for worker in fair.workers()}
    clients = [socket.create_connection(("127.0.0.1", fair.port)) for _ in range(12)]
    for client in clients:
        client.sendall(request[:size])
    for pid in before:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda pid=pid: pid not in {w["pid"] for w in fair.workers()}, 20, "its end")
        fair.wait_ready(workers=4)
    for client in clients:
        with client:
            client.settimeout(10)
            client.sendall(request[size:])
            response = http.client.HTTPResponse(client)
            response.begin()
            assert json.load(response) == ["abc"]


def test_a_stopping_pool_answers_whom_the_kernel_had_accepted(tmp_path: Path) -> None:
    with Pool(tmp_path, *SCRIPTED) as pool:
        [worker] = pool.wait_ready().workers()
        os.kill(worker["pid"], signal.SIGSTOP)
        clients = [pool.send_infer(["abc"], max_tokens=3) for _ in range(20)]
        pool.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "Handling signal: term" in pool.log(), 5, "the master's end")
        os.kill(worker["pid"], signal.SIGCONT)
        for client in clients:
            with client:
                assert read_answer(client) == ["abc"]


def test_a_stopping_pool_answers_what_it_gave_to_a_worker_that_is_killed(tmp_path: Path) -> None:
    """The request lies unread in a worker's mailbox, and its sender has nothing else to do."""
    flags = (*SCRIPTED, "--workers", "2", "--", "--token-s", "0.01", "--slots", "1")
    with Pool(tmp_path, *flags) as pool, contextlib.ExitStack() as opened:
        clients = [opened.enter_context(Owned(pool.wait_ready(workers=2))) for _ in range(8)]
        sender, runner, guest, *_ = of_one_worker(clients)
        pids = [worker["pid"] for worker in pool.workers()]
        os.kill(pids[1 - sender], signal.SIGSTOP)
        runner.send("long", max_tokens=50)
        guest.send("abc", max_tokens=3)
        assert runner.answered() == sender
        pool.process.send_signal(signal.SIGTERM)
        for client in clients:
            client.leave(unless=guest)
        wait_until(lambda: "Handling signal: term" in pool.log(), 5, "the master's end")
        time.sleep(0.5)  # in which the sender must not end, so there is nothing to wait for
        os.kill(pids[1 - sender], signal.SIGKILL)
        assert guest.answered() == sender


def test_a_slot_that_frees_takes_at_once_who_waits_at_another_worker(tmp_path: Path) -> None:
    flags = (*SCRIPTED, "--workers", "2", "--", "--token-s", "0.01", "--slots", "1")
    with (
        Pool(tmp_path, *flags) as pool,
        concurrent.futures.ThreadPoolExecutor(2) as threads,
        contextlib.ExitStack() as opened,
    ):
        clients = [opened.enter_context(Owned(pool.wait_ready(workers=2))) for _ in range(14)]
        busy, runner, *guests = of_one_worker(clients)
        runner.send("long", max_tokens=900)
        wait_until(lambda: total(pool, "inflight") == 1, 5, "a busy worker")
        seconds = []
        for guest in guests[:6]:
            short = threads.submit(time_of, lambda: pool.infer("short", max_tokens=30))
            wait_until(lambda: total(pool, "inflight") == 2, 5, "two busy workers")
            waiting = threads.submit(time_of, lambda guest=guest: guest.ask("a", max_tokens=1))
            wait_until(lambda: pool.workers()[busy]["waiting"] == 1, 5, "a waiting guest")
            seconds.append(waiting.result() - short.result())
        print(f"seconds from one end to the next: {seconds}")
        assert statistics.mean(seconds) <= 0.12


def time_of(end: Callable[[], object]) -> float:
    """When it has come."""
    end()
    return time.monotonic()
