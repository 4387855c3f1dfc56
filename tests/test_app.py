"""The routes with a scripted engine, without gunicorn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from gpupool.app import create_app
from gpupool.engines.base import Engine, Report
from gpupool.partition import Slice
from gpupool.scoreboard import STALE_S, Scoreboard
from gpupool.settings import Settings
from tests.engines.scripted import ScriptedEngine

SLICE = Slice(0, (), (0,))


def boot(gpu_slice: Slice, settings: Settings, report: Report) -> Engine:
    engine = ScriptedEngine(settings, gpu_slice)
    engine.load(report)
    return engine


def make_client(**settings: Any) -> FlaskClient:
    app = create_app(boot)
    app.extensions["gpupool"].load(SLICE, Settings(model_name="m", **settings))
    return app.test_client()


@pytest.fixture(name="client")
def _client() -> Iterator[FlaskClient]:
    client = make_client()
    yield client
    client.application.extensions["gpupool"].close()


def infer(client: FlaskClient, instances: Any, **params: Any) -> Any:
    answer = client.post("/infer", json={"instances": instances, "params": params})
    assert answer.status_code == 200, answer.json
    return answer.json


def test_answers_come_in_the_order_of_the_instances(client: FlaskClient) -> None:
    prompts = [f"prompt {i}" for i in range(40)]
    assert infer(client, prompts, max_tokens=9) == [(prompt * 9)[:9] for prompt in prompts]


def test_one_string_is_a_list_of_one(client: FlaskClient) -> None:
    assert infer(client, "ab", max_tokens=3) == ["aba"]


def test_n_gives_a_list_for_each_instance(client: FlaskClient) -> None:
    assert infer(client, ["ab", "c"], max_tokens=2, n=2) == [["ab", "ab"], ["cc", "cc"]]


def test_prompt_logprobs_leave_the_first_token_out(client: FlaskClient) -> None:
    assert infer(client, ["abc", "a"], prompt_logprobs=0) == [[-0.98, -0.99], []]


def test_detail_tells_about_each_item(client: FlaskClient) -> None:
    body = {"instances": ["ab"], "params": {"max_tokens": 2}, "detail": True}
    [item] = client.post("/infer", json=body).json
    assert item["text"] == "ab"
    assert item["finish_reason"] == "length"
    assert (item["prompt_tokens"], item["completion_tokens"]) == (2, 2)
    assert (item["replica"], item["tries"], item["error"]) == (0, 1, None)


def test_parameters_of_one_request_do_not_reach_the_next(client: FlaskClient) -> None:
    infer(client, "ab", max_tokens=2, n=2)
    assert infer(client, "ab") == ["ab" * 8]


def test_a_completion_ends_at_the_end_of_the_context(client: FlaskClient) -> None:
    [answer] = infer(client, "a" * 990, max_tokens=100)
    assert len(answer) == 10


BAD_BODIES: dict[str, bytes] = {
    "empty": b"",
    "not json": b"{",
    "an array": b"[]",
    "not utf-8": b'{"instances": "\xff"}',
    "nan": b'{"instances": "a", "params": {"temperature": NaN}}',
    "nan where nobody looks": b'{"instances": "a", "params": {"request_id": NaN}}',
    "infinity": b'{"instances": "a", "params": {"temperature": -Infinity}}',
    "bottomless": b'{"instances":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep": b'{"instances":' + b"[" * 100 + b"]" * 100 + b"}",
    "a huge number": b'{"instances": "a", "params": {"max_tokens": ' + b"9" * 5000 + b"}}",
    "a float beyond range": b'{"instances": "a", "params": {"temperature": 1e999}}',
    "half a surrogate": b'{"instances": "\\ud800"}',
    "no instances": b'{"params": {}}',
    "empty list": b'{"instances": []}',
    "empty prompt": b'{"instances": [""]}',
    "a number for a prompt": b'{"instances": [1]}',
    "null prompt": b'{"instances": [null]}',
    "params a list": b'{"instances": "a", "params": []}',
    "detail a string": b'{"instances": "a", "detail": "yes"}',
    "unknown key": b'{"instances": "a", "parms": {}}',
    "prompt too long": json.dumps({"instances": "a" * 1000}).encode(),
    "prompt far too long": json.dumps({"instances": "a" * 1_000_000}).encode(),
    "too many sequences": json.dumps({"instances": ["a"] * 2000, "params": {"n": 128}}).encode(),
    "a long unknown parameter": json.dumps(
        {"instances": "a", "params": {"x" * 1_000_000: 1}}
    ).encode(),
    "unknown parameter": b'{"instances": "a", "params": {"temprature": 1}}',
    "unsupported": b'{"instances": "a", "params": {"use_beam_search": true}}',
}


@pytest.mark.parametrize("raw", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_a_bad_body_is_a_400_in_the_one_shape(client: FlaskClient, raw: bytes) -> None:
    answer = client.post("/infer", data=raw)
    assert answer.status_code == 400
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert len(answer.data) < 1000


def test_an_unknown_route_is_a_json_404(client: FlaskClient) -> None:
    answer = client.get("/nowhere")
    assert answer.status_code == 404
    assert "/nowhere" in answer.json["error"]["message"]


def test_a_wrong_method_is_a_json_405(client: FlaskClient) -> None:
    answer = client.get("/infer")
    assert answer.status_code == 405
    assert answer.json["error"]["message"] == "/infer takes POST, not GET"


def test_a_body_that_asks_for_a_stream_is_told_where_streams_are(client: FlaskClient) -> None:
    answer = client.post("/infer", json={"instances": "a", "stream": True})
    assert answer.status_code == 400
    assert "; streams are at /v1/completions and" in answer.json["error"]["message"]


def test_the_last_error_has_a_time() -> None:
    client, scoreboard = make_client(), Scoreboard(1)
    client.application.extensions["gpupool.scoreboard"] = scoreboard
    assert client.get("/pool").json["workers"][0]["last_error_ago_s"] is None
    scoreboard[0].describe(last_error="it died")
    scoreboard[0].last_error_at -= 60
    assert 60 <= client.get("/pool").json["workers"][0]["last_error_ago_s"] < 70
    client.application.extensions["gpupool"].close()


def test_before_the_load_infer_is_a_503_that_says_when_to_retry() -> None:
    client = create_app(boot).test_client()
    answer = client.post("/infer", json={"instances": "a"})
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert client.get("/readyz").status_code == 503
    assert client.get("/livez").status_code == 200


def test_a_worker_whose_main_loop_is_silent_is_not_ready(client: FlaskClient) -> None:
    scoreboard = client.application.extensions["gpupool.scoreboard"] = Scoreboard(1)
    scoreboard.claim(0)
    scoreboard[0].pid = 1
    scoreboard[0].enter("ready")
    assert client.get("/readyz").status_code == 200
    scoreboard[0].heartbeat -= STALE_S
    assert client.get("/readyz").status_code == 503


def test_the_index_names_the_model_and_the_routes(client: FlaskClient) -> None:
    body = client.get("/").json
    assert body["model"] == "m"
    assert body["routes"]["/infer"] == ["POST"]
    assert body["routes"]["/metrics"] == ["GET"]


def test_while_an_unknown_engine_loads_nobody_knows_what_it_can() -> None:
    client = create_app(boot).test_client()
    client.application.extensions["gpupool"].load(
        SLICE, Settings(model_name="m", infer_type="own:Engine")
    )
    assert client.get("/pool").json["capabilities"]["seed"] is True
    client.application.extensions["gpupool"].close()
    assert client.get("/pool").json["capabilities"]["seed"] is None


def test_a_library_error_is_a_500_without_its_text(client: FlaskClient) -> None:
    engine = client.application.extensions["gpupool"].engine

    def explode(text: str) -> list[int]:
        raise ValueError("secret path /models/x")

    engine.tokenize = explode
    answer = client.post("/infer", json={"instances": "a"})
    assert answer.status_code == 500
    assert "secret" not in answer.text


@pytest.mark.parametrize("path", ["/infer", "/pool", "/metrics", "/", "/nowhere", "/v1/models"])
def test_with_a_key_every_route_but_the_probes_needs_it(path: str) -> None:
    client = make_client(api_key=("right", "other"))
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic right"}):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.json["error"]["code"] == "invalid_api_key"
    assert client.get(path, headers={"Authorization": "Bearer other"}).status_code != 401
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 200
