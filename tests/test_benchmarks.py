"""The benchmarks' arithmetic, their load client, and that the document shows the numbers."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from benchmarks import ancestor, pool_load, report, vllm_serve
from benchmarks.contender import Answered, on_cores
from benchmarks.experiments import EXPERIMENTS, Comparison
from benchmarks.load import Endpoint
from benchmarks.rounds import counts, is_quiet, is_valid, median, rates, ratios
from benchmarks.work import ENGINE, TOKENS_EACH, engine_flags, make_prompts

GOALS = {
    ("pool_1", "bare_engine"): 0.95,
    ("pool_2", "pool_1_one_core"): 1.8,
    ("pool_2", "vllm_serve_dp_2"): 2.0,
    ("pool_2", "vllm_serve_dp_2_bound"): None,
    ("pool_2", "pool_1_both_cores"): None,
    ("pool_1", "ancestor"): 8.0,
    ("bench_serve", "own_client"): 0.9,
}


def sample(
    tokens: int, seconds: float, fault: str | None = None, foreign_cpu_s: float = 0.0
) -> dict[str, Any]:
    cpu = dict.fromkeys(("client_cpu_s", "own_cpu_s", "stolen_cpu_s"), 0.0)
    found = {"tokens": tokens, "seconds": seconds, "fault": fault, "facts": {}}
    return found | cpu | {"foreign_cpu_s": foreign_cpu_s}


def result_of(*rounds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    names = ("bare_engine", "pool_1")
    return {
        "experiment": "one_worker",
        "measured": {
            "date": "D", "cpu": "C", "cores": 2, "memory_gib": 23.5, "versions": {"vllm": "V"},
        },
        "contenders": [
            {"name": name, "what": name.title(), "cores": [0], "requests": 32} for name in names
        ],
        "rounds": [
            {"load_average": [0.5, 0, 0], "idle_cpu_share": 0.01, "samples": samples}
            for samples in rounds
        ],
    }  # fmt: skip


RESULT = result_of(
    {"bare_engine": sample(2000, 4.0), "pool_1": sample(2000, 5.0)},
    {"bare_engine": sample(2000, 10.0), "pool_1": sample(2000, 10.0)},
    {"bare_engine": sample(2000, 1.0), "pool_1": sample(1999, 9.0, "1 of 32 answers short")},
    {"bare_engine": sample(2000, 5.0), "pool_1": sample(2000, 8.0)},
    {"bare_engine": sample(2000, 2.0), "pool_1": sample(2000, 8.0, foreign_cpu_s=1.3)},
)


def test_ratios_are_taken_within_a_round() -> None:
    assert ratios(RESULT, "pool_1", "bare_engine") == pytest.approx([0.8, 1.0, 0.625])


def test_an_invalid_and_a_disturbed_round_count_for_nobody() -> None:
    assert rates(RESULT, "bare_engine") == pytest.approx([500, 200, 400])


@pytest.mark.parametrize(("share", "quiet"), [(0.149, True), (0.151, False)])
def test_a_round_is_disturbed_by_others_in_any_of_its_samples(share: float, quiet: bool) -> None:
    samples = {"a": sample(2000, 4.0), "b": sample(2000, 4.0, foreign_cpu_s=4 * share)}
    assert is_quiet({"samples": samples}) is quiet


def test_the_result_is_the_median_of_the_ratios_not_the_ratio_of_the_medians() -> None:
    assert f"| {median([0.8, 1.0, 0.625]):.2f} (0.62 to 1.00) |" in rendered()


def rendered(result: dict[str, Any] = RESULT) -> str:
    return report.render_section(EXPERIMENTS["one_worker"], result)


def test_an_invalid_round_is_reported_with_its_fault() -> None:
    assert "Rounds that count: 3 of 5; 1 invalid, 1 disturbed" in rendered()
    assert "Round 3, `pool_1`: 1 of 32 answers short." in rendered()


def test_rounds_that_are_all_invalid_make_no_table() -> None:
    lost = sample(0, 1.0, "all lost")
    text = rendered(result_of({"bare_engine": sample(1, 1.0), "pool_1": lost}))
    assert "Rounds that count: 0 of 1; 1 invalid" in text
    assert "| met |" not in text


def test_a_missed_goal_is_called_missed() -> None:
    assert "| 0.95 | missed |" in rendered()


@pytest.mark.parametrize(("value", "met"), [(0.95, True), (0.9499, False)])
def test_a_goal_is_met_by_the_unrounded_median(value: float, met: bool) -> None:
    comparison = Comparison("a", "b", 0.95)
    assert report.is_met(comparison, [0.1, value, 2.0]) is met


def test_a_table_row_shows_the_median_and_the_extremes() -> None:
    row = "| `bare_engine` | Bare_Engine | 1 | 32 | 400 (200 to 500) | 0.0% |\n"
    assert row in rendered()


def test_the_goals_are_those_set_for_the_project() -> None:
    found = {(c.name, c.base): c.goal for e in EXPERIMENTS.values() for c in e.comparisons}
    assert found == GOALS


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_every_comparison_is_of_contenders_of_its_experiment(experiment: Any) -> None:
    contenders = {contender.name for contender in experiment.contenders((0, 1))}
    compared = {name for c in experiment.comparisons for name in (c.name, c.base)}
    assert compared == contenders


def test_what_is_compared_per_engine_has_the_same_cores_and_requests() -> None:
    for name in ("one_worker", "ancestor"):
        contenders = EXPERIMENTS[name].contenders((4, 7))
        assert {(c.cores, c.num_requests) for c in contenders} == {((4,), 32)}


def committed() -> dict[str, Any]:
    """Of the experiments with a model; test_balance.py looks at the other."""
    return {name: one for name, one in report.load_results().items() if name in EXPERIMENTS}


def test_committed_numbers_are_of_the_experiment_as_it_is_now() -> None:
    for name, result in committed().items():
        found = [(c["name"], c["what"], c["requests"]) for c in result["contenders"]]
        contenders = EXPERIMENTS[name].contenders((0, 1))
        assert found == [(c.name, c.what, c.num_requests) for c in contenders]
        assert result["engine"] == ENGINE


def test_committed_numbers_have_five_rounds_or_more_that_count() -> None:
    for name, result in committed().items():
        assert sum(map(counts, result["rounds"])) >= 5, name


def test_committed_rounds_that_are_valid_have_every_token() -> None:
    for result in committed().values():
        asked = {c["name"]: c["requests"] * TOKENS_EACH for c in result["contenders"]}
        for one in filter(is_valid, result["rounds"]):
            assert {name: s["tokens"] for name, s in one["samples"].items()} == asked


def test_the_document_shows_the_committed_numbers() -> None:
    assert report.DOCUMENT.read_text() == report.render_document(report.load_results())


def test_prompts_are_new_in_every_round() -> None:
    prompts = [text for index in range(-1, 10) for text in make_prompts(index, 64)]
    assert len(set(prompts)) == len(prompts)


def test_engine_flags_write_false_as_no() -> None:
    flags = engine_flags()
    assert "--enforce-eager" in flags
    assert "--no-enable-prefix-caching" in flags
    assert flags[flags.index("--max-model-len") + 1] == "512"


def test_a_started_process_inherits_the_cores_and_the_caller_keeps_its_own() -> None:
    before = os.sched_getaffinity(0)
    one = min(before)
    with on_cores((one,)):
        assert os.sched_getaffinity(0) == {one}
    assert os.sched_getaffinity(0) == before


def test_full_answers_have_no_fault() -> None:
    assert Answered(1.0, (TOKENS_EACH,) * 32).find_fault() is None


def test_a_short_answer_is_a_fault() -> None:
    fault = Answered(1.0, (TOKENS_EACH, TOKENS_EACH - 1)).find_fault()
    assert fault == "0 of 2 answers lost, 1 not 64 tokens"


def test_a_lost_answer_is_a_fault_with_its_reason() -> None:
    fault = Answered(1.0, (TOKENS_EACH, None), "status 503").find_fault()
    assert fault == "1 of 2 answers lost, 0 not 64 tokens: status 503"


@pytest.mark.parametrize(
    ("count", "answer"),
    [
        (pool_load.count_tokens, [{"text": "x", "completion_tokens": 7}]),
        (vllm_serve.count_tokens, {"choices": [], "usage": {"completion_tokens": 7}}),
        (ancestor.count_tokens, [{"text": "x", "completion_tokens": 7}]),
    ],
    ids=["pool", "vllm serve", "ancestor"],
)
def test_tokens_are_counted_as_the_server_tells_them(
    count: Callable[[Any], int], answer: Any
) -> None:
    assert count(answer) == 7


class Answerer(BaseHTTPRequestHandler):
    """Answers the number that it is sent; 500 for -1, and hangs up on -2."""

    meet: threading.Barrier

    def do_POST(self) -> None:
        number = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        # Nobody is answered before everybody has asked.
        self.meet.wait(20)
        if number == -2:
            self.connection.close()
            return
        body = json.dumps(number).encode()
        self.send_response(500 if number == -1 else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """With room for all connections at once; the default is 5, and the kernel drops the rest."""

    request_queue_size = 128


@contextmanager
def serving(num_requests: int) -> Iterator[str]:
    handler = type("Handler", (Answerer,), {"meet": threading.Barrier(num_requests)})
    server = Server(("127.0.0.1", 0), handler)
    server.handle_error = lambda *args: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(*numbers: int) -> Answered:
    with serving(len(numbers)) as url:
        return Endpoint(url, list, int, int).generate([str(number) for number in numbers])


def test_the_load_client_has_all_requests_in_flight_at_once() -> None:
    assert ask(*range(64)).tokens == tuple(range(64))


def test_an_error_status_is_a_lost_answer() -> None:
    answered = ask(5, -1)
    assert answered.tokens == (5, None)
    assert answered.reason == "ValueError: status 500, b'-1'"


def test_a_connection_that_is_closed_is_a_lost_answer() -> None:
    answered = ask(-2, 6)
    assert answered.tokens == (None, 6)
    assert answered.reason.startswith("ServerDisconnectedError")
