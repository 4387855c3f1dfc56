"""A pool whose model another pool hosts, behind a key: one scripted, and llama.cpp for real."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from tests.pool import Pool, wait_until
from tests.server.engines import MODEL

pytestmark = pytest.mark.server

KEY = "sk-far-0123456789abcdef"
TALKER = ("--model_name", "M", "--infer_type", "tests.engines.talker:Talker")


def near(url: str, *words: str, workers: int = 1) -> tuple[str, ...]:
    flags = ("--model_name", "M", "--infer_type", "saas", "--workers", str(workers))
    return (*flags, "--", "--saas.base_url", f"{url}/v1", *words)


@pytest.fixture(scope="module", name="far")
def _far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Two scripted workers behind a key; a token takes 10 ms."""
    flags = (*TALKER, "--api_key", KEY, "--workers", "2")
    with Pool(tmp_path_factory.mktemp("far"), *flags, "--", "--token-s", "0.01") as pool:
        yield pool.wait_ready(Authorization=f"Bearer {KEY}", workers=2)


@pytest.fixture(scope="module", name="pool")
def _pool(far: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Asks it, with the key from a file."""
    folder = tmp_path_factory.mktemp("near")
    key = folder / "key"
    key.write_text(f"{KEY}\n")
    key.chmod(0o600)
    words = near(far.url, "--saas.api_key_file", str(key), "--saas.infer_as", "completion")
    with Pool(folder, *words, env={"GPUPOOL_SAAS_API_KEY": "sk-of-somebody-else"}) as pool:
        yield pool.wait_ready()


def running(far: Pool) -> int:
    return sum(worker["running"] for worker in far.workers(Authorization=f"Bearer {KEY}"))


def test_a_prompt_is_continued_by_the_other_pool(pool: Pool) -> None:
    assert pool.infer(["a|hello", "b|you"], max_tokens=50) == ["hello", "you"]
    assert pool.infer("ab", max_tokens=5) == ["ababa"]


def test_log_probabilities_come_along(far: Pool, pool: Pool) -> None:
    body = {"instances": ["a|hi"], "params": {"logprobs": 1, "max_tokens": 9}, "detail": True}
    _, [there] = far.post("/infer", body, Authorization=f"Bearer {KEY}")
    _, [here] = pool.post("/infer", body)
    for name in ("text", "finish_reason", "prompt_tokens", "completion_tokens"):
        assert here[name] == there[name]
    assert [t["logprob"] for t in here["logprobs"]] == [t["logprob"] for t in there["logprobs"]]


def test_a_batch_larger_than_both_pools_comes_back_in_order(pool: Pool) -> None:
    texts = [f"a|text{number}" for number in range(100)]
    assert pool.infer(texts, max_tokens=20) == [text[2:] for text in texts]


def test_a_client_that_leaves_frees_the_other_pools_slot(far: Pool, pool: Pool) -> None:
    for path, body in (
        ("/infer", {"instances": ["ab"], "params": {"max_tokens": 900}}),
        ("/v1/completions", {"prompt": "ab", "max_tokens": 900}),
        ("/v1/completions", {"prompt": "ab", "max_tokens": 900, "stream": True}),
    ):
        client = pool.send(path, body)
        wait_until(lambda: running(far) == 1, 5, "a running sequence there")
        client.close()
        wait_until(lambda: running(far) == 0, 1.5, "a free slot there")


def test_openais_client_sees_what_it_sees_there(far: Pool, pool: Pool) -> None:
    def ask(url: str, key: str) -> list[Any]:
        with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
            messages: list[Any] = [{"role": "user", "content": "a|hello"}]
            chat = client.chat.completions.create(model="M", messages=messages, logprobs=True)
            text = client.completions.create(model="M", prompt=["a|x", "b|y"], n=2, max_tokens=9)
            stream = client.chat.completions.create(
                model="M", messages=messages, n=2, stream=True,
                stream_options={"include_usage": True},
            )  # fmt: skip
            pieces = sorted(
                (p.choices[0].index, p.choices[0].delta.content or "") for p in stream if p.choices
            )
            vectors = client.embeddings.create(model="M", input=["ab", "cde"])
            return [
                chat.choices, chat.usage, text.choices, text.usage, pieces,
                [item.embedding for item in vectors.data],
            ]  # fmt: skip

    assert ask(pool.url, "none") == ask(far.url, KEY)


def test_an_error_of_the_request_says_why(pool: Pool) -> None:
    body = {"messages": [{"role": "tool", "content": "x"}]}
    status, answer = pool.post("/v1/chat/completions", body)
    assert (status, answer["error"]["param"]) == (400, "messages")
    assert "a conversation cannot begin so" in answer["error"]["message"]


# llama.cpp for real.


@pytest.fixture(scope="module", name="llama")
def _llama(shared_pool: Callable[[str], Pool]) -> Pool:
    return shared_pool("llama_cpp")


@pytest.fixture(scope="module", name="before_llama")
def _before_llama(llama: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    words = near(llama.url, "--saas.model", MODEL, "--saas.infer_as", "completion", workers=2)
    with Pool(tmp_path_factory.mktemp("llama"), *words) as pool:
        yield pool.wait_ready(workers=2)


@pytest.mark.model
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0},
        {"temperature": 0, "stop": [" Paris"]},
        {"temperature": 1.0, "seed": 1234},
        {"temperature": 1.0, "seed": 5, "n": 3, "top_p": 0.9, "top_k": 40},
        {"temperature": 0, "logit_bias": {"260": -100}},
    ],
    ids=lambda params: "-".join(params),
)
def test_infer_gives_what_it_gives_there(
    llama: Pool, before_llama: Pool, params: dict[str, Any]
) -> None:
    prompts = ["The capital of France is", "1, 2, 3,"]
    there = llama.infer(prompts, max_tokens=12, **params)
    assert before_llama.infer(prompts, max_tokens=12, **params) == there


@pytest.mark.model
@pytest.mark.timeout(300)
def test_chats_tools_and_schemas_are_the_hosts_own(before_llama: Pool) -> None:
    city = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}}
    city |= {"required": ["city"], "additionalProperties": False}
    tools: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": city}}]
    user: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
    form: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": city}}
    url = f"{before_llama.url}/v1"
    with contextlib.closing(openai.OpenAI(base_url=url, api_key="none")) as client:
        create: Any = client.chat.completions.create
        common = {"model": "M", "messages": user, "max_tokens": 60, "temperature": 0}
        assert "Paris" in create(**common).choices[0].message.content
        shaped = create(**common, response_format=form).choices[0].message.content
        assert set(json.loads(shaped)) == {"city"}
        called = create(**common, tools=tools, tool_choice="required").choices[0]
        [call] = called.message.tool_calls
        assert set(json.loads(call.function.arguments)) == {"city"}


@pytest.mark.model
@pytest.mark.timeout(300)
def test_many_streams_at_once_are_each_their_own(before_llama: Pool) -> None:
    async def read(client: openai.AsyncOpenAI, prompt: str) -> str:
        stream = await client.completions.create(
            model="M", prompt=prompt, max_tokens=8, temperature=0, stream=True
        )
        return "".join([piece.choices[0].text async for piece in stream if piece.choices])

    async def work() -> list[str]:
        url = f"{before_llama.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=200) as client:
            return list(await asyncio.gather(*(read(client, f"{i}, {i + 1},") for i in range(6))))

    prompts = [f"{i}, {i + 1}," for i in range(6)]
    assert asyncio.run(work()) == before_llama.infer(prompts, max_tokens=8, temperature=0)
