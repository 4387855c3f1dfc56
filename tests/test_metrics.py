"""/metrics without gunicorn: what is counted when, and engines' own metrics under one roof."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from gpupool.app import create_app
from gpupool.engine_metrics import merge
from gpupool.engines.base import Engine, Report
from gpupool.metrics import pool_families, render_families
from gpupool.partition import Slice
from gpupool.scoreboard import Scoreboard
from gpupool.settings import Settings
from gpupool.vitals import GpuUse, Use
from tests.engines.dies_on_demand import DiesOnDemand
from tests.engines.scripted import ScriptedEngine
from tests.engines.tells_metrics import TellsMetrics
from tests.scrape import Samples, parse

SLICE = Slice(0, (), (0,))


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


@pytest.fixture(name="engine_class")
def _engine_class() -> type[ScriptedEngine]:
    return ScriptedEngine


@pytest.fixture(name="client")
def _client(engine_class: type[ScriptedEngine]) -> Iterator[FlaskClient]:
    def boot(gpu_slice: Slice, settings: Settings, report: Report) -> Engine:
        engine = engine_class(settings, gpu_slice)
        engine.load(report)
        return engine

    app = create_app(boot)
    app.extensions["gpupool"].load(SLICE, Settings(model_name='a "quoted" \\ name\n2'))
    yield app.test_client()
    app.extensions["gpupool"].close()


def scrape(client: FlaskClient) -> Samples:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    return parse(answer.text)


def infer(client: FlaskClient, instances: Any, **params: Any) -> None:
    body = {"instances": instances, "params": params}
    assert client.post("/infer", json=body).status_code == 200


def test_the_answer_is_prometheus_text(client: FlaskClient) -> None:
    answer = client.get("/metrics")
    assert answer.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.text.endswith("\n")


def test_label_values_are_escaped(client: FlaskClient) -> None:
    [labels] = [dict(labels) for name, labels in scrape(client) if name == "gpupool_info"]
    assert labels["model"] == 'a "quoted" \\ name\n2'


def test_every_answer_is_counted_once_with_its_route_and_status(client: FlaskClient) -> None:
    infer(client, "ab", max_tokens=2)
    infer(client, "ab", max_tokens=2)
    client.post("/infer", json={"instances": "a", "params": {"max_tokns": 1}})
    client.get("/infer")
    client.get("/no/such/path")
    client.get("/livez")
    counted = {
        (dict(labels)["route"], dict(labels)["status"]): number
        for (name, labels), number in scrape(client).items()
        if name == "gpupool_requests_total"
    }
    assert counted == {
        ("/infer", "200"): 2,
        ("/infer", "400"): 1,
        ("/infer", "405"): 1,
        ("other", "404"): 1,
        ("/livez", "200"): 1,
    }


def test_tokens_of_a_prompt_count_once_and_those_of_each_completion(client: FlaskClient) -> None:
    infer(client, ["abc", "de"], max_tokens=7, n=3)
    samples = scrape(client)
    assert value(samples, "gpupool_prompt_tokens_total", worker="0") == 5
    assert value(samples, "gpupool_generated_tokens_total", worker="0") == 2 * 3 * 7


@pytest.mark.parametrize("engine_class", [DiesOnDemand])
def test_tokens_of_a_request_that_failed_are_not_counted(client: FlaskClient) -> None:
    infer(client, "abc", max_tokens=5)
    body = {"instances": ["x", "die"], "params": {"max_tokens": 5}}
    assert client.post("/infer", json=body).status_code == 503
    samples = scrape(client)
    assert value(samples, "gpupool_prompt_tokens_total", worker="0") == 3
    assert value(samples, "gpupool_generated_tokens_total", worker="0") == 5
    assert value(samples, "gpupool_request_duration_seconds_count", worker="0") == 1


def test_a_request_waits_once_and_has_one_first_token(client: FlaskClient) -> None:
    infer(client, ["abc", "de"], max_tokens=7, n=3)
    samples = scrape(client)
    counts = {
        name: value(samples, f"gpupool_{name}_seconds_count", worker="0")
        for name in ("queue_time", "time_to_first_token", "inter_token_latency", "request_duration")
    }
    assert counts == {
        "queue_time": 1,
        "time_to_first_token": 1,
        "inter_token_latency": 2 * 3 * 6,
        "request_duration": 1,
    }


def test_a_scored_prompt_has_no_first_token(client: FlaskClient) -> None:
    infer(client, "abc", prompt_logprobs=0)
    samples = scrape(client)
    assert value(samples, "gpupool_time_to_first_token_seconds_count", worker="0") == 0
    assert value(samples, "gpupool_queue_time_seconds_count", worker="0") == 1


@pytest.mark.parametrize("engine_class", [TellsMetrics])
def test_the_engines_own_metrics_are_there_with_the_worker(client: FlaskClient) -> None:
    assert value(scrape(client), "own_steps_total", worker="0", kind="x") == 3


class _Explodes(TellsMetrics):
    def metrics_text(self) -> str:
        raise RuntimeError("no metrics today")


@pytest.mark.parametrize("engine_class", [_Explodes])
def test_an_engine_that_cannot_tell_costs_only_its_own_part(client: FlaskClient) -> None:
    assert value(scrape(client), "gpupool_prompt_tokens_total", worker="0") == 0


# Texts of several engines.


def engine_text(steps: int, **labels: str) -> str:
    registry = CollectorRegistry()
    labels = labels or {"model_name": 'a"b\\c\nd'}
    counter = Counter("vllm:steps", "How many\nsteps.", tuple(labels), registry=registry)
    counter.labels(*labels.values()).inc(steps)
    seconds = Histogram("vllm:wait_seconds", "Waits.", registry=registry, buckets=(0.5, 1))
    seconds.observe(0.7)
    return generate_latest(registry).decode()


def test_every_sample_gets_its_worker_and_nothing_is_lost() -> None:
    texts = {0: engine_text(3), 5: engine_text(4)}
    merged = parse(merge(texts))
    expected = {
        (name, labels | {("worker", str(slot))}): number
        for slot, text in texts.items()
        for (name, labels), number in parse(text).items()
    }
    assert merged == expected


def test_help_and_type_come_once_for_a_family() -> None:
    text = merge({0: engine_text(3), 5: engine_text(4)})
    assert text.count("# TYPE vllm:steps_total counter\n") == 1
    assert text.count("# HELP vllm:steps_total How many\\nsteps.\n") == 1
    assert text.count("# TYPE vllm:wait_seconds histogram\n") == 1
    assert text.count("# TYPE vllm:steps_created gauge\n") == 1


def test_a_label_worker_of_the_engines_own_is_kept_apart() -> None:
    samples = parse(merge({2: engine_text(3, x="a,worker=", worker="mine")}))
    labels = {"worker": "2", "x": "a,worker=", "exported_worker": "mine"}
    assert value(samples, "vllm:steps_total", **labels) == 3


@pytest.mark.parametrize(
    "text", ["{", "# TYPE a\n", "a b c d\n", "9a 1\n", 'a{b="c} 1\n', "a{} x\n"]
)
def test_a_text_that_is_not_valid_costs_no_other(text: str) -> None:
    samples = parse(merge({0: text, 1: engine_text(4)}))
    assert value(samples, "vllm:steps_total", worker="1", model_name='a"b\\c\nd') == 4


def test_no_engine_can_speak_in_our_name() -> None:
    assert merge({0: "# TYPE gpupool_requests_total counter\ngpupool_requests_total 9\n"}) == ""


def test_names_and_numbers_stay_as_the_engine_wrote_them() -> None:
    text = "# TYPE odd counter\nodd 1e-07 1700000000000\nbare{} +Inf\nlast NaN\n"
    assert merge({3: text}) == (
        '# TYPE odd counter\nodd{worker="3"} 1e-07 1700000000000\n'
        'bare{worker="3"} +Inf\nlast{worker="3"} NaN\n'
    )


# Gauges of a whole pool.


def test_what_nobody_knows_is_left_out() -> None:
    scoreboard = Scoreboard(2)
    for slot in range(2):
        scoreboard.claim(slot)
        scoreboard[slot].pid = 1
        scoreboard[slot].describe(gpus=(f"GPU-{slot}",))
    scoreboard.vitals.publish(0, Use(5, (GpuUse(5, 9, 0.25),)), valid_s=60)
    samples = parse(render_families(pool_families(Settings(), scoreboard)))
    assert value(samples, "gpupool_worker_memory_bytes", worker="0") == 5
    assert value(samples, "gpupool_gpu_utilization_ratio", worker="0", gpu="GPU-0") == 0.25
    assert value(samples, "gpupool_lease", worker="1", gpu="GPU-1") == 1
    unknown = {name for name, labels in samples if ("worker", "1") in labels}
    assert "gpupool_worker_memory_bytes" not in unknown
    assert "gpupool_gpu_memory_used_bytes" not in unknown


def test_a_slots_old_and_new_worker_are_added_up() -> None:
    scoreboard = Scoreboard(2)
    for number, index in enumerate(scoreboard.rows_of(1), 1):
        scoreboard.claim(index)
        scoreboard[index].pid = number
        scoreboard[index].running = number
        scoreboard.totals[index].request("/infer", 200)
    scoreboard[1].enter("draining")
    samples = parse(render_families(pool_families(Settings(), scoreboard)))
    name = "gpupool_requests_total"
    assert value(samples, name, worker="1", route="/infer", status="200", reason="") == 2
    assert value(samples, "gpupool_worker_in_flight", worker="1") == 3
    states = {state: value(samples, "gpupool_worker_state", worker="1", state=state)
              for state in ("starting", "draining", "ready")}  # fmt: skip
    assert states == {"starting": 1, "draining": 1, "ready": 0}
