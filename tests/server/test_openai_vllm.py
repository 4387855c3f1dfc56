"""What only vLLM's own OpenAI application has, and what its mount must not lose."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from benchmarks.vllm_bench import bench_serve
from benchmarks.work import TOKENS_EACH, make_prompts
from tests.pool import Pool, wait_until
from tests.server.engines import engine_pool

pytestmark = [pytest.mark.server, pytest.mark.model, pytest.mark.timeout(600)]

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Tell me a long story."}]}
NUM_BROKEN = [50, pytest.param(1000, marks=pytest.mark.slow)]


@pytest.fixture(scope="module", name="pool")
def _pool(shared_pool: Callable[[str], Pool]) -> Pool:
    return shared_pool("vllm")


@pytest.fixture(scope="module", name="client")
def _client(pool: Pool) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{pool.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def name_of(pool: Pool) -> str:
    return str(pool.get("/v1/models")[1]["data"][0]["id"])


@pytest.mark.parametrize("grammar", ["root ::= root", 'root ::= "a" root'])
def test_a_grammar_without_an_end_is_never_our_failure(pool: Pool, grammar: str) -> None:
    """By the first no token can ever come; the second is merely endless."""
    body = {**HELLO, "max_tokens": 4, "structured_outputs": {"grammar": grammar}}
    status, answer = pool.post(CHAT, body)
    if grammar == "root ::= root":
        assert (status, answer["error"]["code"]) == (400, "invalid_grammar")
    else:
        assert (status, answer["choices"][0]["finish_reason"]) == (200, "length")


def test_a_response(pool: Pool, client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model=name_of(pool), input="What is the capital of France?", temperature=0, store=False
    )
    assert "Paris" in answer.output_text
    assert answer.usage is not None
    assert answer.usage.output_tokens > 0


def test_a_streamed_response(pool: Pool, client: openai.OpenAI) -> None:
    with client.responses.create(
        model=name_of(pool),
        input="What is the capital of France?",
        temperature=0,
        store=False,
        stream=True,
    ) as stream:
        kinds = [event.type for event in stream]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"


def test_a_message(pool: Pool) -> None:
    body = {
        "model": name_of(pool),
        "max_tokens": 32,
        "temperature": 0,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    }
    status, answer = pool.post("/v1/messages", body)
    assert status == 200, answer
    assert "Paris" in answer["content"][0]["text"]


@pytest.mark.parametrize(
    ("structured", "expected"),
    [({"choice": ["red", "blue"]}, ("red", "blue")), ({"regex": "[0-9]{3}-[0-9]{3}"}, None)],
    ids=["choice", "regex"],
)
def test_structured_outputs(
    pool: Pool, structured: dict[str, Any], expected: tuple[str, ...] | None
) -> None:
    status, answer = pool.post(CHAT, HELLO | {"structured_outputs": structured, "max_tokens": 16})
    assert status == 200, answer
    text = answer["choices"][0]["message"]["content"]
    assert text in expected if expected else text[3] == "-"


def test_tokens_and_back(pool: Pool) -> None:
    tokens = pool.post("/tokenize", {"prompt": "Hello there"})[1]["tokens"]
    assert pool.post("/detokenize", {"tokens": tokens})[1]["prompt"] == "Hello there"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        ),
        ("/v1/rerank", {"query": "a", "documents": ["b"]}),
        ("/v1/embeddings", {"input": "a"}),
        (CHAT, {"messages": [{"role": "user", "content": "word " * 4000}]}),
        (CHAT, HELLO | {"logit_bias": {"5": float(10**6)}}),
        (CHAT, HELLO | {"structured_outputs": {"regex": "("}}),
        (CHAT, HELLO | {"priority": "high"}),
    ],
    ids=["picture", "rerank", "vectors", "length", "bias", "regex", "priority"],
)
def test_what_a_text_model_cannot_do_is_the_clients_fault(
    pool: Pool, path: str, body: dict[str, Any]
) -> None:
    status, answer = pool.post(path, body)
    assert status == 400, answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"


def metric(pool: Pool, name: str) -> int:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", pool.port)) as connection:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith(name))


def in_engine(pool: Pool) -> int:
    return metric(pool, "vllm:num_requests_running") + metric(pool, "vllm:num_requests_waiting{")


def num_threads(pool: Pool) -> int:
    return len(list(Path(f"/proc/{pool.workers()[0]['pid']}/task").iterdir()))


@pytest.mark.parametrize("count", NUM_BROKEN)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_clients_that_leave_leave_nothing_behind(pool: Pool, stream: bool, count: int) -> None:
    body = HELLO | {"max_tokens": 1500, "stream": stream, "ignore_eos": True}
    leave(pool, body, 20)  # threads that are made when they are needed first
    before = num_threads(pool)
    leave(pool, body, count)
    # One or two more may be made when all others are busy; never one for each client.
    wait_until(lambda: num_threads(pool) <= before + 2, 5, "threads that end")
    assert pool.post(CHAT, HELLO | {"max_tokens": 2})[0] == 200


def leave(pool: Pool, body: dict[str, Any], count: int) -> None:
    """Ask, ten at a time, and leave amid the answer; returns when the engine is idle again."""
    for _ in range(count // 10):
        clients = [pool.send(CHAT, body) for _ in range(10)]
        for client in clients[: 8 if body["stream"] else 0]:
            assert client.recv(1)
        for client in clients:
            client.close()
    wait_until(lambda: in_engine(pool) == 0, 20, "an engine without requests")
    wait_until(lambda: pool.workers()[0]["running"] == 0, 5, "free slots")


def test_tokens_are_counted_as_vllm_counts_them(pool: Pool) -> None:
    ours, theirs = "gpupool_generated_tokens_total", "vllm:generation_tokens_total"
    wait_until(lambda: in_engine(pool) == 0, 20, "an idle engine")
    before = metric(pool, ours), metric(pool, theirs)
    pool.post(CHAT, HELLO | {"max_tokens": 7, "ignore_eos": True})
    with pool.send(CHAT, HELLO | {"max_tokens": 9, "ignore_eos": True, "stream": True}) as client:
        response = http.client.HTTPResponse(client)
        response.begin()
        assert b"[DONE]" in response.read()

    def grown() -> tuple[int, int]:
        return metric(pool, ours) - before[0], metric(pool, theirs) - before[1]

    # A stream is counted when its last bytes are on their way.
    wait_until(lambda: grown() == (16, 16), 5, "both counts")


@pytest.mark.slow
def test_a_pool_that_only_embeds(tmp_path: Path) -> None:
    args = ("--runner", "pooling", "--convert", "embed")
    with (
        engine_pool("vllm", tmp_path, "--served_model_name", "e", engine_args=args) as pool,
        openai.OpenAI(base_url=f"{pool.url}/v1", api_key="none") as client,
    ):
        texts = ["The cat sat on the mat.", "A cat sat on a mat.", "x = foo(5)"]
        found = client.embeddings.create(model="e", input=texts, encoding_format="float")
        one, near, far = (item.embedding for item in found.data)
        assert dot(one, near) > dot(one, far)
        assert found.usage.prompt_tokens > 15
        for path, body in (("/infer", {"instances": "a"}), (CHAT, HELLO)):
            status, answer = pool.post(path, body)
            assert (status, answer["error"]["code"]) == (400, "unsupported")


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


@pytest.mark.slow
def test_vllms_own_load_generator(pool: Pool, tmp_path: Path) -> None:
    """`vllm bench serve`: every request succeeds, and /metrics counts the tokens it counts."""
    before = metric(pool, "gpupool_generated_tokens_total")
    result = bench_serve(pool.url, name_of(pool), make_prompts(0, 8), tmp_path)
    assert (result["completed"], result["failed"]) == (8, 0)
    assert result["total_output_tokens"] == 8 * TOKENS_EACH
    assert metric(pool, "gpupool_generated_tokens_total") - before == 8 * TOKENS_EACH
