"""A pool of a hosted model, with a host that is played: what a client sees, and what nobody may."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from gpupool.capabilities import ENGINES, FEATURES
from tests.pool import ROOT, Pool, clean_environment, free_port, wait_until
from tests.saas.host import KEY, MODEL, Host, Planned

pytestmark = pytest.mark.server

CHAT = "/v1/chat/completions"
USER: list[Any] = [{"role": "user", "content": "hello"}]
TEXT = "w0 w1 w2 "
KEYED = {"GPUPOOL_SAAS_API_KEY": KEY}


def flags(host: Host, *more: str, workers: int = 2) -> tuple[str, ...]:
    words = ("--model_name", MODEL, "--served_model_name", "here", "--infer_type", "saas")
    words += ("--workers", str(workers), "--log_level", "debug")
    return (*words, "--", "--saas.base_url", host.url, *more)


@pytest.fixture(scope="module", name="far")
def _far() -> Iterator[Host]:
    with Host() as host:
        yield host


@pytest.fixture(scope="module", name="pool")
def _pool(far: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Two workers of four slots."""
    words = (
        "--max_wait_s",
        "5",
        *flags(far, "--saas.max_parallel", "4", "--saas.max_retries", "1"),
    )
    env = KEYED | {"LITELLM_LOG": "DEBUG", "OPENAI_LOG": "debug"}
    with Pool(tmp_path_factory.mktemp("saas"), *words, env=env) as pool:
        yield pool.wait_ready(workers=2)


@pytest.fixture(name="host")
def _host(far: Host) -> Host:
    """As if new."""
    far.asked.clear()
    far.num_left, far.token_s, far.num_tokens = 0, 0.0, 3
    return far


@pytest.fixture(name="client")
def _client(pool: Pool) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{pool.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def answer_of(pool: Pool, body: dict[str, Any], path: str = CHAT) -> tuple[int, Any, bytes]:
    """With the headers, and the body as it came."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", pool.port)) as connection:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.headers, response.read()


# /infer.


def test_prompts_are_answered_in_lists(pool: Pool, host: Host) -> None:
    assert pool.infer(["a", "b"]) == [TEXT, TEXT]
    assert pool.infer("a", n=2) == [[TEXT, TEXT]]
    asked = sorted(one.body["messages"][0]["content"] for one in host.asked)
    assert asked == ["a", "a", "a", "b"]
    assert {one.key for one in host.asked} == {KEY}


def test_parameters_reach_the_host_under_its_names(pool: Pool, host: Host) -> None:
    pool.infer("a", temperature=0.5, top_p=0.9, max_new_tokens=7, seed=5, stop="x", n=2)
    bodies = sorted((one.body for one in host.asked), key=lambda body: int(body["seed"]))
    assert [body["seed"] for body in bodies] == [5, 6]
    expected = {"model": MODEL, "temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "stop": ["x"]}
    assert expected.items() <= bodies[0].items()


def test_detail_tells_what_the_host_has_counted(pool: Pool, host: Host) -> None:
    body = {"instances": ["a"], "params": {"logprobs": 1}, "detail": True}
    status, [found] = pool.post("/infer", body)
    assert status == 200
    assert (found["prompt_tokens"], found["completion_tokens"], found["token_ids"]) == (7, 3, [])
    top = [{"id": None, "token": "w0 ", "logprob": -0.5}]
    assert found["logprobs"][0] == {"id": None, "token": "w0 ", "logprob": -0.5, "top": top}


@pytest.mark.parametrize(
    ("feature", "params"),
    [
        ("prompt_logprobs", {"prompt_logprobs": 0}),
        ("beam_search", {"use_beam_search": True, "best_of": 2}),
        ("min_p", {"min_p": 0.1}),
        ("min_tokens", {"min_tokens": 1}),
        ("repetition_penalty", {"repetition_penalty": 1.1}),
        ("ignore_eos", {"ignore_eos": True}),
        ("stop_token_ids", {"stop_token_ids": [1]}),
        ("skip_special_tokens", {"skip_special_tokens": False}),
    ],
)
def test_what_no_host_does_is_refused(
    pool: Pool, host: Host, feature: str, params: dict[str, Any]
) -> None:
    assert feature in frozenset(FEATURES) - ENGINES["saas"]
    status, answer = pool.post("/infer", {"instances": ["a"], "params": params})
    assert (status, answer["error"]["code"]) == (400, "unsupported")
    assert "--infer_type vllm" in answer["error"]["message"]
    assert not host.asked


def test_a_batch_runs_on_all_workers_and_an_item_is_tried_again_alone(
    pool: Pool, host: Host
) -> None:
    host.plan(*[Planned(delay_s=0.05)] * 5, Planned(503), *[Planned(delay_s=0.05)] * 6)
    instances = [str(number) for number in range(12)]
    status, found = pool.post("/infer", {"instances": instances, "detail": True})
    assert status == 200
    assert [item["text"] for item in found] == [TEXT] * 12
    assert {item["replica"] for item in found} == {0, 1}
    asked = [one.body["messages"][0]["content"] for one in host.asked]
    assert len(asked) == 13
    assert set(asked) == set(instances)


def test_an_item_that_fails_is_one_items_error(pool: Pool, host: Host) -> None:
    host.plan(Planned(400, {"error": {"message": "not this one"}}))
    status, found = pool.post("/infer", {"instances": ["a", "b", "c"], "detail": True})
    assert status == 200
    errors = [item["error"] for item in found if item["error"]]
    assert [error["type"] for error in errors] == ["invalid_request_error"]
    assert "not this one" in errors[0]["message"]


def test_a_host_that_is_down_costs_no_worker(pool: Pool, host: Host) -> None:
    before = [worker["pid"] for worker in pool.workers()]
    host.plan(*[Planned(503, headers={"Retry-After": "100"})] * 4)
    status, answer = pool.post("/infer", {"instances": ["a", "b", "c", "d"], "params": {}})
    assert (status, answer["error"]["code"]) == (503, "host_unavailable")
    assert [worker["pid"] for worker in pool.workers()] == before
    assert pool.infer("a") == [TEXT]


# /v1.


def test_an_answer_is_the_hosts_under_our_name(client: openai.OpenAI, host: Host) -> None:
    answer = client.chat.completions.create(model="here", messages=USER, n=2, seed=3)
    assert [choice.message.content for choice in answer.choices] == [TEXT, TEXT]
    assert answer.model == "here"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 10
    [asked] = host.asked
    assert asked.body == {"model": MODEL, "messages": USER, "n": 2, "seed": 3}


def test_a_stream_has_all_choices_and_its_usage(client: openai.OpenAI, host: Host) -> None:
    stream = client.chat.completions.create(
        model="here", messages=USER, n=2, stream=True, stream_options={"include_usage": True}
    )
    *pieces, last = list(stream)
    for index in (0, 1):
        own = [piece.choices[0] for piece in pieces if piece.choices[0].index == index]
        assert "".join(choice.delta.content or "" for choice in own) == TEXT
        assert own[-1].finish_reason == "stop"
    assert last.usage is not None
    assert last.usage.total_tokens == 10


def test_tools_formats_and_log_probabilities_pass_as_they_are(
    client: openai.OpenAI, host: Host
) -> None:
    tools: list[Any] = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    answer = client.chat.completions.create(
        model="here", messages=USER, tools=tools, tool_choice="required", logprobs=True,
        top_logprobs=2, response_format={"type": "json_object"}, reasoning_effort="low",
        extra_body={"top_k": 5},
    )  # fmt: skip
    [call] = answer.choices[0].message.tool_calls or []
    assert call.function.name == "f"  # type: ignore[union-attr]
    assert answer.choices[0].logprobs is not None
    [asked] = host.asked
    assert asked.body["tools"] == tools
    assert asked.body["response_format"] == {"type": "json_object"}
    assert (asked.body["top_k"], asked.body["reasoning_effort"]) == (5, "low")


def test_completions_run_one_by_one_and_embeddings_together(
    client: openai.OpenAI, host: Host
) -> None:
    found = client.completions.create(model="here", prompt=["a", "b"], max_tokens=3)
    assert [(choice.index, choice.text) for choice in found.choices] == [(0, TEXT), (1, TEXT)]
    assert found.usage is not None
    assert found.usage.total_tokens == 20
    assert sorted(one.body["prompt"] for one in host.asked) == ["a", "b"]
    host.asked.clear()
    vectors = client.embeddings.create(model="here", input=["a", "b", "c"])
    assert [item.index for item in vectors.data] == [0, 1, 2]
    assert [one.body["input"] for one in host.asked] == [["a", "b", "c"]]


def test_the_model_is_listed_under_our_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["here"]


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/rerank", "/tokenize"])
def test_a_route_that_no_host_has_says_so(pool: Pool, path: str) -> None:
    body = {"input": "a", "query": "a", "documents": ["a"], "prompt": "a"}
    status, answer = pool.post(path, body)
    assert (status, answer["error"]["code"]) == (400, "unsupported")


def test_a_picture_is_not_fetched_for_a_client(pool: Pool, host: Host) -> None:
    part = {"type": "image_url", "image_url": {"url": "http://10.0.0.1/a.png"}}
    status, _ = pool.post(CHAT, {"messages": [{"role": "user", "content": [part]}]})
    assert status == 400
    assert not host.asked


@pytest.mark.parametrize("stream", [False, True])
def test_the_hosts_limits_are_passed_on(pool: Pool, host: Host, stream: bool) -> None:
    limits = {"x-ratelimit-remaining-requests": "5", "Server-Secret": "x"}
    host.plan(Planned(headers=limits))
    status, headers, _ = answer_of(pool, {"messages": USER, "stream": stream})
    assert (status, headers["x-ratelimit-remaining-requests"]) == (200, "5")
    assert "Server-Secret" not in headers


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/infer"])
def test_a_limit_that_stays_is_our_429(pool: Pool, host: Host, stream: bool, path: str) -> None:
    host.plan(Planned(429, headers={"Retry-After": "100", "x-ratelimit-reset-tokens": "9s"}))
    body = {"messages": USER, "stream": stream} if path == CHAT else {"instances": ["a"]}
    status, headers, raw = answer_of(pool, body, path)
    assert (status, headers["Retry-After"]) == (429, "100")
    assert headers["x-ratelimit-reset-tokens"] == "9s"
    assert json.loads(raw)["error"]["code"] == "host_rate_limit"


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_stream_that_breaks_ends_with_an_error_and_no_done(
    pool: Pool, host: Host, is_cut: bool
) -> None:
    host.plan(Planned(num_events=2, is_cut=is_cut))
    status, _, raw = answer_of(pool, {"messages": USER, "stream": True})
    *_, last = raw.decode().split("\n\n")[:-1]
    assert status == 200
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "host_error"
    assert b"[DONE]" not in raw
    assert len(host.asked) == 1


@pytest.mark.parametrize("body", [b"{wrong", b'{"choices": 5}', b'{"choices": [5]}'])
def test_an_answer_that_is_none_is_an_error(pool: Pool, host: Host, body: bytes) -> None:
    host.plan(Planned(200, body), Planned(200, body))
    for path, asked in ((CHAT, {"messages": USER}), ("/infer", {"instances": ["a"]})):
        status, _, raw = answer_of(pool, asked, path)
        assert (status, json.loads(raw)["error"]["code"]) == (502, "host_failed")
    assert len(host.asked) == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/infer"])
def test_a_client_that_leaves_closes_the_hosts_connection(
    pool: Pool, host: Host, stream: bool, path: str
) -> None:
    host.num_tokens, host.token_s = 1000, 0.01
    host.plan(Planned(delay_s=0 if stream and path == CHAT else 30))
    body = {"messages": USER, "stream": stream} if path == CHAT else {"instances": ["a"]}
    client = pool.send(path, body)
    wait_until(lambda: host.num_open == 1, 5, "a request at the host")
    if stream and path == CHAT:
        assert client.recv(10)
    client.close()
    began = time.monotonic()
    wait_until(lambda: host.num_left == 1, 5, "the end of the host's connection")
    assert time.monotonic() - began < 0.5
    wait_until(lambda: not any(w["running"] for w in pool.workers()), 5, "free slots")


def test_no_more_than_the_slots_are_asked_at_a_time(pool: Pool, host: Host) -> None:
    host.plan(*[Planned(delay_s=0.3)] * 20)
    clients = [pool.send(CHAT, {"messages": USER}) for _ in range(20)]
    most = 0
    while len(host.asked) < 20 or host.num_open:
        most = max(most, host.num_open)
        time.sleep(0.005)
    for client in clients:
        client.close()
    assert most == 8


# The key.


def test_the_key_is_told_to_nobody(pool: Pool, host: Host) -> None:
    told = {"error": {"message": f"bad {KEY}", "param": KEY, "code": KEY}}
    seen = []
    for status in (400, 401, 403, 404, 429, 500, 200):
        for body in (USER, [{"role": "user", "content": "x"}]):
            host.plan(*[Planned(status, told, {"x-ratelimit-a": KEY, "Retry-After": "99"})] * 3)
            seen.append(answer_of(pool, {"messages": body, "stream": body is USER}))
            host.forget_plans()
        host.plan(*[Planned(status, told)] * 3)
        seen.append(answer_of(pool, {"instances": ["a"], "detail": True}, "/infer"))
        host.forget_plans()
    for path in ("/pool", "/readyz", "/health", "/", "/openapi.json", "/v1/models", "/metrics"):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", pool.port)) as connection:
            connection.request("GET", path)
            seen.append((0, "", connection.getresponse().read()))
    text = "\n".join(f"{headers} {raw!r}" for _, headers, raw in seen) + pool.log()
    assert KEY not in text
    assert KEY[8:] not in text
    assert "host failed" in pool.log()


def test_a_key_that_the_host_refuses_is_the_pools_own_fault(pool: Pool, host: Host) -> None:
    host.plan(Planned(401, {"error": {"message": "whose key is that"}}))
    status, _, raw = answer_of(pool, {"messages": USER})
    error = json.loads(raw)["error"]
    assert (status, error["code"], error["type"]) == (502, "host_key_refused", "host_error")
    assert "whose" not in error["message"]


def start(*words: str, **env: str) -> tuple[int, str]:
    """The exit code and the last words of a start that is refused."""
    command = ["bash", str(ROOT / "start_gunicorn.sh"), "--port", str(free_port()), *words]
    done = subprocess.run(
        command, env=clean_environment(**env), capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


def test_a_wrong_key_fails_the_start_in_one_line(host: Host) -> None:
    code, told = start(*flags(host), GPUPOOL_SAAS_API_KEY="sk-wrong-0123456789")
    assert code == 2
    assert told.startswith(f"gpupool: error: --saas.base_url {host.url} refuses the pool's key")
    assert told.count("\n") == 1
    assert "sk-wrong" not in told


def test_a_key_on_the_command_line_fails_the_start(host: Host) -> None:
    code, told = start(*flags(host, "--saas.api_key", KEY))
    assert (code, told.count("\n")) == (2, 1)
    assert "everybody on this machine sees a command line" in told
    assert KEY not in told


def test_gpus_for_a_worker_fail_the_start(host: Host) -> None:
    code, told = start("--per_proc_gpus", "2", *flags(host), **KEYED)
    assert code == 2
    assert "a hosted model (--infer_type saas) takes no GPU" in told


# Life.


def test_a_vendor_is_asked_by_litellm(tmp_path: Path) -> None:
    with Host() as host:
        words = flags(host, "--saas.api_type", "hosted_vllm", workers=1)
        with Pool(tmp_path, *words, env=KEYED | {"LITELLM_LOG": "DEBUG"}) as pool:
            pool.wait_ready()
            assert pool.infer(["a", "b"], n=2) == [[TEXT, TEXT]] * 2
            host.plan(Planned(429, headers={"Retry-After": "700", "x-ratelimit-a": "1"}))
            status, headers, raw = answer_of(pool, {"messages": USER})
            assert (status, headers["Retry-After"], headers["x-ratelimit-a"]) == (429, "700", "1")
            host.plan(Planned(400, {"error": {"message": f"bad {KEY}"}}))
            assert answer_of(pool, {"messages": USER})[0] == 400
            _, _, raw = answer_of(pool, {"messages": USER, "stream": True})
            assert raw.endswith(b"data: [DONE]\n\n")
            assert {one.key for one in host.asked} == {KEY}
            assert KEY not in pool.log()
            [worker] = pool.workers()
            assert psutil.Process(worker["pid"]).memory_info().rss < 400 << 20


def test_a_reload_reads_the_key_again(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(KEY)
    with Host() as host:
        words = flags(host, "--saas.api_key_file", str(path), workers=1)
        with Pool(tmp_path, *words) as pool:
            before = pool.wait_ready().workers()[0]["pid"]
            host.key = "sk-another-0123456789"
            path.write_text(f"# since today\n{host.key}\n")
            pool.process.send_signal(signal.SIGHUP)
            wait_until(lambda: pool.workers()[0]["pid"] != before, 30, "another worker")
            assert pool.wait_ready().infer("a") == [TEXT]


def test_a_pool_waits_for_a_host_that_is_not_there_yet(tmp_path: Path) -> None:
    with Host() as host:
        host.models_status = 503
        with Pool(tmp_path, *flags(host, workers=1), env=KEYED) as pool:
            wait_until(lambda: "answers 503 when it is asked" in pool.log(), 20, "the reason")
            assert pool.get("/livez")[0] == 200
            host.models_status = 200
            pool.wait_ready(deadline_s=20)
            assert pool.infer("a") == [TEXT]
            assert pool.stop() == 0
            assert f"could not load its engine: {host.url} answers 503" in pool.log()
            assert "Traceback" not in pool.log()


def test_a_worker_that_is_killed_comes_back_and_loses_no_item(pool: Pool, host: Host) -> None:
    host.plan(*[Planned(delay_s=0.3)] * 8)
    client = pool.send_infer([str(number) for number in range(8)])
    wait_until(lambda: host.num_open == 8, 5, "a batch on both workers")
    os.kill(pool.workers()[0]["pid"], signal.SIGKILL)
    response = http.client.HTTPResponse(client)
    response.begin()
    assert json.loads(response.read()) == [TEXT] * 8
    client.close()
    pool.wait_ready(workers=2)


def test_no_worker_loads_what_it_does_not_need(pool: Pool) -> None:
    for worker in pool.workers():
        process = psutil.Process(worker["pid"])
        assert process.memory_info().rss < 150 << 20
        mapped = Path(f"/proc/{process.pid}/maps").read_text()
        assert "libtorch" not in mapped
        assert "litellm" not in mapped
