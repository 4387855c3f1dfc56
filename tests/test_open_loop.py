"""The clients of the balance experiment, and what one queue would give them."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from benchmarks.closed_loop import ask_again
from benchmarks.ideal import CentralQueue
from benchmarks.open_loop import (
    MAX_TOKENS,
    Answer,
    Arrival,
    Offered,
    draw_arrivals,
    offer,
    percentiles,
    read_answer,
)
from benchmarks.site import Site, StepModel
from benchmarks.step_engine import Record, write_record
from tests.test_benchmarks import Server


def test_all_contenders_of_a_round_get_the_same_arrivals() -> None:
    assert draw_arrivals(2, 1000, 2.0) == draw_arrivals(2, 1000, 2.0)
    assert draw_arrivals(2, 1000, 2.0) != draw_arrivals(3, 1000, 2.0)


def test_arrivals_offer_exactly_the_load() -> None:
    arrivals = draw_arrivals(0, 1234.0, 5.0)
    assert sum(one.num_tokens for one in arrivals) / arrivals[-1].at_s == pytest.approx(1234.0)


def test_a_tenth_of_the_requests_has_two_fifths_of_the_tokens() -> None:
    lengths = sorted(one.num_tokens for one in draw_arrivals(0, 100_000, 5.0))
    assert sum(lengths[-len(lengths) // 10 :]) / sum(lengths) == pytest.approx(0.4, abs=0.03)
    assert lengths[-1] == MAX_TOKENS


def answered(*answers: tuple[float, int, float] | None) -> Offered:
    """Clients that come every second from 0.5 s after 100.0 and ask for 10 tokens; of each answer
    the time to the first token, the worker, and the latency."""
    arrivals = [Arrival(0.5 + index, 10) for index in range(len(answers))]
    found = [
        None
        if one is None
        else Answer(100.0 + wish.at_s + one[2], Record(one[1], 100.0 + wish.at_s + one[0], 10))
        for wish, one in zip(arrivals, answers, strict=True)
    ]
    return Offered(100.0, 9.0, arrivals, found, num_workers=3)


def test_times_count_from_when_a_client_was_due() -> None:
    facts = answered((9.0, 1, 9.0), (0.2, 1, 0.7), (0.1, 1, 0.9)).facts()
    assert facts["ttft_ms"] == {"50": 100.0, "90": 200.0, "99": 200.0, "100": 200.0}
    assert facts["latency_ms"]["100"] == 900.0


def test_who_comes_in_the_first_second_is_not_counted() -> None:
    facts = answered((9.0, 1, 9.0), (0.2, 1, 0.7)).facts()
    assert (facts["requests"], facts["counted"]) == (2, 1)


def test_a_worker_that_gave_nothing_is_among_the_workers() -> None:
    facts = answered((0.1, 7, 0.2), (0.1, 7, 0.2), (0.1, 8, 0.2)).facts()
    assert facts["tokens_by_worker"] == [20, 10, 0]


def test_a_lost_answer_in_an_open_loop_is_a_fault() -> None:
    assert answered((0.1, 1, 0.2)).find_fault() is None
    fault = answered((0.1, 1, 0.2), None).find_fault()
    assert fault == "1 of 2 answers lost, 0 of the wrong length"


def test_an_answer_of_the_wrong_length_is_a_fault() -> None:
    found = Offered(0, 1, [Arrival(0, 9)], [Answer(1, Record(1, 1, 10))], 1)
    assert found.find_fault() == "0 of 1 answers lost, 1 of the wrong length"


def test_an_error_status_is_no_answer() -> None:
    with pytest.raises(ValueError, match="status 503"):
        read_answer((1.0, 503, b"{}"))


def test_percentiles_are_by_rank() -> None:
    found = percentiles([index / 1000 for index in range(200, 0, -1)])
    assert found == {"50": 100.0, "90": 180.0, "99": 198.0, "100": 200.0}


class Answerer(BaseHTTPRequestHandler):
    """Answers at once, over connections that stay, and counts them."""

    protocol_version = "HTTP/1.1"
    connections: Counter[Any]

    def do_POST(self) -> None:
        self.connections[self.client_address] += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps([write_record(Record(1, time.monotonic(), 1))]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def counting() -> Iterator[tuple[Site, Counter[Any]]]:
    connections: Counter[Any] = Counter()
    server = Server(("127.0.0.1", 0), type("Handler", (Answerer,), {"connections": connections}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Site(f"http://127.0.0.1:{server.server_address[1]}", list), connections
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_each_client_of_a_closed_loop_asks_again_on_its_connection() -> None:
    with counting() as (site, connections):
        asked = ask_again(site, 3, 0.3)
    assert asked.find_fault() is None
    assert len(connections) == 3
    assert sum(connections.values()) == asked.count_tokens() > 3


def test_clients_of_an_open_loop_use_free_connections_again() -> None:
    arrivals = [Arrival(index / 20, 1) for index in range(10)]
    with counting() as (site, connections):
        assert offer(site, arrivals, 1).find_fault() is None
    assert sum(connections.values()) == 10
    assert len(connections) < 10


def test_a_client_of_an_open_loop_comes_when_it_is_due() -> None:
    with counting() as (site, _):
        found = offer(site, [Arrival(0.0, 1), Arrival(0.4, 1)], 1)
    first, second = (answer.record.first_at for answer in found.answers if answer)
    assert second - first > 0.2


SLOW = StepModel("a.b:C", step_s=0.1, batch_cost=1, slots=2)


@pytest.mark.parametrize(
    ("num_workers", "clients", "times"),
    [
        (1, [(0.0, 3)], [0.2]),
        # The second comes amid a step, and joins the one after it, with the first.
        (1, [(0.0, 2), (0.05, 1)], [0.2, 0.45]),
        # Two slots are taken; the first free one is seen when the next step has begun.
        (1, [(0.0, 1), (0.0, 2), (0.01, 1)], [0.2, 0.4, 0.69]),
        (2, [(0.0, 1), (0.0, 1), (0.0, 1)], [0.2, 0.2, 0.4]),
    ],
    ids=["alone", "joins", "waits", "goes where there is least"],
)
def test_the_ideal_queue_waits_for_steps_and_slots(
    num_workers: int, clients: list[tuple[float, int]], times: list[float]
) -> None:
    arrivals = [Arrival(at_s, length) for at_s, length in clients]
    assert CentralQueue(num_workers, SLOW, arrivals).run() == pytest.approx(times)
