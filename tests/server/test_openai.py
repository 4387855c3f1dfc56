"""The official openai client against a pool of each real engine."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.pool import Pool, wait_until
from tests.server.engines import MODEL, NAMES, ON_RAY
from tests.server.reference import PROMPTS, scores

TOLERANCE = 1e-2

pytestmark = [pytest.mark.server, pytest.mark.model, pytest.mark.timeout(600)]

USER: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "size": {"enum": ["big", "small"]}},
    "required": ["city", "size"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {
        "type": "function",
        # vLLM holds the arguments to the schema only if it is told to be strict.
        "function": {"name": name, "description": what, "parameters": CITY, "strict": True},
    }
    for name, what in {"weather": "The weather", "population": "How many live there"}.items()
]
NAMED: Any = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module", params=[*NAMES, ON_RAY], name="pool")
def _pool(request: pytest.FixtureRequest, pool_of: Callable[[str], Pool]) -> Pool:
    return pool_of(request.param)


@pytest.fixture(scope="module", name="client")
def _client(pool: Pool) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{pool.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def chat(client: openai.OpenAI, **more: Any) -> Any:
    given: dict[str, Any] = {"model": MODEL, "messages": USER, "max_tokens": 60, "seed": 1}
    return client.chat.completions.create(**given | more)


def complete(client: openai.OpenAI, prompt: Any, **more: Any) -> Any:
    given: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 12}
    return client.completions.create(prompt=prompt, **given | more)


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_completion_is_the_one_that_infer_gives(pool: Pool, client: openai.OpenAI) -> None:
    prompts = ["The capital of France is", "1, 2, 3,"]
    expected = pool.infer(prompts, temperature=0, max_tokens=12)
    assert [choice.text for choice in complete(client, prompts).choices] == expected


def test_streamed_completion_is_the_whole_one(client: openai.OpenAI) -> None:
    whole = complete(client, "The capital of France is")
    stream = complete(
        client, "The capital of France is", stream=True, stream_options={"include_usage": True}
    )
    *pieces, last = list(stream)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    assert last.usage == whole.usage
    assert whole.usage.completion_tokens == 12


def test_stop_string_ends_a_completion(client: openai.OpenAI) -> None:
    whole = complete(client, "The capital of France is", max_tokens=24).choices[0].text
    found = complete(client, "The capital of France is", max_tokens=24, stop=[whole[6:10]])
    assert found.choices[0].text == whole[: whole.index(whole[6:10])]
    assert found.choices[0].finish_reason == "stop"


def test_seeded_choices_come_again_and_differ(client: openai.OpenAI) -> None:
    def texts() -> list[str]:
        answer = complete(client, "Once upon a time", n=3, seed=5, temperature=1.0)
        return [choice.text for choice in answer.choices]

    first = texts()
    assert texts() == first
    assert len(set(first)) == 3


def test_logprobs_of_a_completion_are_those_of_its_echo(client: openai.OpenAI) -> None:
    prompt = "The capital of France is"
    found = complete(client, prompt, logprobs=2).choices[0]
    again = complete(client, prompt + found.text, logprobs=2, max_tokens=0, echo=True).choices[0]
    num_new = len(found.logprobs.tokens)
    assert again.logprobs.tokens[-num_new:] == found.logprobs.tokens
    own = again.logprobs.token_logprobs[-num_new:]
    assert found.logprobs.token_logprobs == pytest.approx(own, abs=1e-3)
    for value, best in zip(found.logprobs.token_logprobs, found.logprobs.top_logprobs, strict=True):
        assert value == max(best.values())


# The last has 1,000 tokens, most of the work; /infer scores it in every run of the tests.
@pytest.mark.parametrize("count", [29, pytest.param(30, marks=pytest.mark.slow)])
def test_echoed_prompts_have_the_values_of_a_forward_pass(
    client: openai.OpenAI, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The prompts of test_logprobs, as lm-evaluation-harness asks for them."""
    prompts = PROMPTS[:count]
    answer = complete(client, prompts, echo=True, logprobs=1, max_tokens=0, timeout=500)
    expected = scores()[:count]
    worst = 0.0
    for prompt, choice, (ids, values, best) in zip(prompts, answer.choices, expected, strict=True):
        assert choice.text == prompt
        assert len(choice.logprobs.tokens) == len(ids)
        assert choice.logprobs.token_logprobs[0] is None
        assert choice.logprobs.top_logprobs[0] is None
        own = choice.logprobs.token_logprobs[1:]
        worst = max([worst, *(abs(a - b) for a, b in zip(own, values, strict=True))])
        is_greedy = [
            value == max(top.values())
            for value, top in zip(own, choice.logprobs.top_logprobs[1:], strict=True)
        ]
        assert is_greedy == [token == found for token, found in zip(ids[1:], best, strict=True)]
    with capsys.disabled():
        print(f"\nlargest difference of an echo: {worst:.1e}")
    assert worst < TOLERANCE


def test_chat_answers(client: openai.OpenAI) -> None:
    answer = chat(client, temperature=0)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streamed_chat_is_the_whole_one(client: openai.OpenAI) -> None:
    whole = chat(client, n=2)
    stream = chat(client, n=2, stream=True, stream_options={"include_usage": True})
    texts, usage = ["", ""], None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    # The second request may find in the cache what the first one has computed.
    uncached = {"prompt_tokens_details": None}
    assert usage is not None
    assert usage.model_copy(update=uncached) == whole.usage.model_copy(update=uncached)


def test_chat_tells_logprobs(client: openai.OpenAI) -> None:
    answer = chat(client, temperature=0, logprobs=True, top_logprobs=2, max_completion_tokens=5)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    for token in tokens:
        assert token.logprob == token.top_logprobs[0].logprob
        assert bytes(token.bytes).decode() == token.token
        assert math.exp(token.logprob) > 0


def test_many_chats_at_once_are_what_they_are_alone(pool: Pool, client: openai.OpenAI) -> None:
    """Without the improbable tokens, between which the rounding of a batch may decide."""
    given = {"model": MODEL, "messages": USER, "max_tokens": 16, "top_p": 0.9}
    alone = [chat(client, **given, seed=seed) for seed in range(6)]

    async def among() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{pool.url}/v1", api_key="none") as many:
            ask: Any = many.chat.completions.create
            return await asyncio.gather(*(ask(**given, seed=seed) for seed in range(6)))

    texts = [answer.choices[0].message.content for answer in asyncio.run(among())]
    assert texts == [answer.choices[0].message.content for answer in alone]
    assert len(set(texts)) > 1


def test_named_tool_is_called_with_arguments_of_its_schema(client: openai.OpenAI) -> None:
    message = chat(client, tools=TOOLS, tool_choice=NAMED, max_tokens=300).choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "weather"
    check_city(call.function.arguments)


def test_required_tools_are_called_with_arguments_of_their_schemas(client: openai.OpenAI) -> None:
    choice = chat(client, tools=TOOLS, tool_choice="required", max_tokens=300).choices[0]
    assert choice.message.tool_calls
    for call in choice.message.tool_calls:
        assert call.function.name in ("weather", "population")
        check_city(call.function.arguments)


def test_streamed_tool_call_is_the_whole_one(
    client: openai.OpenAI, request: pytest.FixtureRequest
) -> None:
    (whole,) = (
        chat(client, tools=TOOLS, tool_choice=NAMED, max_tokens=300).choices[0].message.tool_calls
    )
    name, arguments = "", ""
    for chunk in chat(client, tools=TOOLS, tool_choice=NAMED, max_tokens=300, stream=True):
        for call in chunk.choices[0].delta.tool_calls or ():
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    # vLLM writes the blanks of a whole call anew.
    read = json.loads if request.node.callspec.params["pool"] == "vllm" else str
    assert (name, read(arguments)) == (whole.function.name, read(whole.function.arguments))


def check_city(text: str) -> None:
    value = json.loads(text)
    assert set(value) == {"city", "size"}
    assert value["size"] in ("big", "small")


@pytest.mark.parametrize("seed", range(3))
def test_text_follows_a_json_schema(client: openai.OpenAI, seed: int) -> None:
    schema = {"name": "city", "schema": CITY, "strict": True}
    answer = chat(
        client,
        seed=seed,
        temperature=1.3,
        max_tokens=200,
        response_format={"type": "json_schema", "json_schema": schema},
    )
    assert answer.choices[0].finish_reason == "stop"
    check_city(answer.choices[0].message.content)


@pytest.mark.parametrize("pool", ["vllm", "llama_cpp"], indirect=True)
def test_a_model_that_was_started_to_generate_has_no_vectors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.embeddings.create(model=MODEL, input="a")
    assert raised.value.code == "unsupported"


@pytest.mark.parametrize("pool", ["transformers"], indirect=True)
def test_vectors_of_like_texts_are_nearer(client: openai.OpenAI) -> None:
    texts = ["The cat sat on the mat.", "A cat was sitting on a mat.", "x = 5; y = foo(x, 12)"]
    found = client.embeddings.create(model=MODEL, input=texts)
    cat, other_cat, code = (item.embedding for item in found.data)
    assert sum(value * value for value in cat) == pytest.approx(1, abs=1e-4)
    assert product(cat, other_cat) > product(cat, code)
    (alone,) = client.embeddings.create(model=MODEL, input=texts[0], encoding_format="float").data
    assert alone.embedding == pytest.approx(cat, abs=1e-4)


def product(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"extra_body": {"structured_outputs": {"regex": "("}}}, None),
        ({"extra_body": {"top_pp": 0.5}}, "top_pp"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, None),
        ({"max_tokens": 5000}, "max_tokens"),
    ],
    ids=["regex", "name", "tool", "length"],
)
def test_what_cannot_be_is_a_400_of_the_client(
    client: openai.OpenAI, more: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        chat(client, **more)
    assert param is None or raised.value.param == param


def test_client_that_leaves_a_stream_ends_its_generation(pool: Pool, client: openai.OpenAI) -> None:
    with ThreadPoolExecutor(4) as threads:
        streams = list(
            threads.map(
                lambda seed: complete(client, "Once", max_tokens=1500, seed=seed, stream=True),
                range(4),
            )
        )
        for stream in streams:
            next(iter(stream))
            stream.close()
    wait_until(lambda: pool.workers()[0]["running"] == 0, 20, "an idle worker")
