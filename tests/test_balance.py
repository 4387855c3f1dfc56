"""The balance experiment: its engine, its clients, its servers, and what is told of it."""

from __future__ import annotations

import json
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from benchmarks import balance, balance_report, nginx, plot, report
from benchmarks.closed_loop import ask_again
from benchmarks.contender import Start
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
from benchmarks.rounds import counts
from benchmarks.site import Site, StepModel, start_pool
from benchmarks.step_engine import Record, StepEngine, read_record, write_prompt, write_record
from benchmarks.stock import start_stock
from gpupool.engines.base import Event, Failed, Finished, SamplingParams
from gpupool.partition import Slice
from gpupool.settings import Settings
from tests.test_benchmarks import Server

# The engine.


@contextmanager
def engine_of(*flags: str) -> Iterator[StepEngine]:
    settings = Settings(HF_MODEL_NAME="none", INFER_TYPE="a.b:C", engine_args=flags)
    engine = StepEngine(settings, Slice(0, (), (0,)))
    engine.load(lambda phase, fraction: None)
    try:
        yield engine
    finally:
        engine.die()


class Sinks:
    """Keeps the last event of each request."""

    def __init__(self, engine: StepEngine) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        self._ends: dict[str, Event] = {}

    def start(self, name: str, num_tokens: int) -> None:
        def sink(event: Event) -> None:
            if isinstance(event, Finished | Failed):
                with self._changed:
                    self._ends[name] = event
                    self._changed.notify_all()

        prompt = self._engine.tokenize(write_prompt(num_tokens))
        self._engine.generate(name, prompt, SamplingParams(max_tokens=1000), sink)

    def record(self, name: str) -> Record:
        with self._changed:
            assert self._changed.wait_for(lambda: name in self._ends, 10)
        end = self._ends[name]
        assert isinstance(end, Finished), end
        return read_record(end.completions[0].text)


@pytest.mark.parametrize(("batch", "step_s"), [(1, 0.03), (4, 0.06)])
def test_a_step_of_the_engine_costs_more_with_a_larger_batch(batch: int, step_s: float) -> None:
    with engine_of("--step-s", "0.02", "--batch-cost", "2", "--slots", "4") as engine:
        sinks = Sinks(engine)
        # The first step may have begun before the others came.
        for index in range(batch):
            sinks.start(f"one {index}", 4)
        last = sinks.record(f"one {batch - 1}")
        began = last.first_at
        sinks.start("after all", 1)
        ended = sinks.record("after all").first_at
    # Three more steps of the whole batch, then one alone.
    assert ended - began == pytest.approx(3 * step_s + 0.03, abs=0.02)


def test_a_sequence_without_a_slot_waits_for_one() -> None:
    with engine_of("--step-s", "0.01", "--batch-cost", "1", "--slots", "1") as engine:
        sinks = Sinks(engine)
        sinks.start("first", 5)
        sinks.start("second", 1)
        waited = sinks.record("second").first_at - sinks.record("first").first_at
    assert waited >= 5 * 0.02


def test_the_engine_gives_as_many_tokens_as_the_prompt_asks_for() -> None:
    with engine_of("--step-s", "0.001") as engine:
        sinks = Sinks(engine)
        sinks.start("one", 17)
        assert sinks.record("one").num_tokens == 17


def test_a_record_survives_the_wire() -> None:
    record = Record(4711, 12345.678901, 33)
    assert read_record(write_record(record)) == record


# The clients.


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


class Counter_(BaseHTTPRequestHandler):
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
    server = Server(("127.0.0.1", 0), type("Handler", (Counter_,), {"connections": connections}))
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
    assert second - first == pytest.approx(0.4, abs=0.15)


# The servers.

QUICK = StepModel("benchmarks.step_engine:StepEngine", step_s=0.002, batch_cost=16, slots=2)


@pytest.mark.server
@pytest.mark.parametrize("start", [start_pool, start_stock], ids=["pool", "stock"])
def test_a_server_answers_every_client_from_its_workers(start: Any, tmp_path: Path) -> None:
    start_two: Start[Site] = start(2, QUICK)
    with start_two(tmp_path, (0,)) as site:
        found = offer(site, [Arrival(index / 100, 40) for index in range(40)], 2)
    assert found.find_fault() is None
    assert len(found.facts()["tokens_by_worker"]) == 2


def test_nginx_has_all_servers_and_keeps_their_connections() -> None:
    text = nginx.write_configuration(Path("/tmp/x"), 1000, [1001, 1002])
    assert "server 127.0.0.1:1001;\n        server 127.0.0.1:1002;" in text
    assert text.count("least_conn;") == text.count("keepalive 1024;") == 1
    assert text.count("{") == text.count("}") == 5


def test_without_nginx_the_others_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("NGINX", raising=False)
    assert nginx.find_nginx() is None
    assert [c.name for c in balance.contenders_of(2, None, (0,))] == ["pool", "stock"]


# What is told.


def sample(ttft_ms: float, rate: float, fault: str | None = None) -> dict[str, Any]:
    cpu = {"client_cpu_s": 0.5, "own_cpu_s": 1.0, "stolen_cpu_s": 0.0, "foreign_cpu_s": 0.0}
    facts = {
        "requests": 100,
        "ttft_ms": {"50": 5, "90": ttft_ms / 2, "99": ttft_ms},
        "latency_ms": {"50": 50, "99": 500},
        "tokens_by_worker": [90, 30, 30, 30],
    }
    return cpu | {"seconds": 2.0, "tokens": 2 * rate, "fault": fault, "facts": facts}


def rounds_of(*pairs: tuple[dict[str, Any], dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"load_average": [0.5, 0, 0], "idle_cpu_share": 0, "samples": {"pool": own, "stock": other}}
        for own, other in pairs
    ]


RESULT = {
    "measured": {"date": "D", "cpu": "C", "cores": 2, "memory_gib": 1, "versions": {"x": "1"}},
    "model": {"step_s": 0.008, "batch_cost": 16, "slots": 8},
    "run_s": 6.0,
    "scenes": [
        {
            "workers": 4,
            "load": 0.9,
            "rounds": rounds_of(
                (sample(100, 1), sample(1000, 1)),
                (sample(300, 1), sample(1200, 1)),
                (sample(200, 1), sample(1600, 1)),
                (sample(1, 1, "1 of 9 answers lost"), sample(9000, 1)),
            ),
        }
    ],
    "overhead": [
        {"clients": 1, "rounds": rounds_of((sample(1, 100), sample(1, 200)))},
        {
            "clients": 16,
            "rounds": rounds_of((sample(1, 90), sample(1, 100)), (sample(1, 50), sample(1, 100))),
        },
    ],
}


def section() -> str:
    return balance_report.render_section(RESULT)


def test_a_row_shows_percentiles_the_busiest_worker_and_the_cost() -> None:
    row = "| 4 | 90% | `pool` | 5 | 100 | 200 (100 to 300) | 50 | 500 | 2.00 | 10.0 |\n"
    assert row in section()


def test_ratios_of_a_scene_are_taken_within_a_round() -> None:
    assert "| 4 | 90% | `stock` | 0.12 (0.10 to 0.25) | 0.12 (0.10 to 0.25) |\n" in section()


def test_an_invalid_round_of_a_scene_counts_for_nobody_and_is_told() -> None:
    assert "9000" not in section()
    assert "1 of 9 answers lost" in section()


def test_the_goal_is_of_all_clients_and_judged_by_the_median() -> None:
    assert "| 1 | 0.50 (0.50 to 0.50) |  |  |\n" in section()
    assert "| 16 | 0.70 (0.50 to 0.90) | 0.7 | met |\n" in section()


def test_a_missing_nginx_is_told() -> None:
    assert "nginx is not among the contenders" in section()


def test_the_plot_goes_through_the_medians_of_the_rounds_that_count() -> None:
    root = ElementTree.fromstring(plot.render(RESULT))
    space = "{http://www.w3.org/2000/svg}"
    heights = [float(one.attrib["cy"]) for one in root.iter(f"{space}circle")]
    # 200 and 1200 ms, where 100 ms is at the lower edge and 10000 ms at the upper one.
    scale = plot.Scale(2, 4)
    assert heights == [round(scale.y(200), 1), round(scale.y(1200), 1)]


def committed() -> dict[str, Any]:
    return report.load_results()[balance.NAME]


def test_committed_numbers_are_of_the_scenes_as_they_are_now() -> None:
    scenes = [(scene["workers"], scene["load"]) for scene in committed()["scenes"]]
    assert scenes == [(size, share) for size in balance.WORKERS for share in balance.LOADS]
    assert [one["clients"] for one in committed()["overhead"]] == list(balance.CLIENTS)


def test_committed_scenes_have_three_rounds_or_more_that_count() -> None:
    for series in balance.series_of(committed()):
        assert sum(map(counts, series)) >= balance.NUM_ROUNDS


def test_the_committed_plot_shows_the_committed_numbers() -> None:
    assert report.PLOT.read_text() == plot.render(committed())
