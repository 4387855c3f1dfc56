"""llama.cpp's OpenAI handlers through a whole pool, asked by the official client."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI

from tests.demo_model import f32_gguf, gguf_path
from tests.pool import Pool, wait_until
from tests.scrape import scrape, total
from tests.server.engines import LLAMA_CPP_EXACT, engine_pool

pytestmark = [pytest.mark.server, pytest.mark.model, pytest.mark.timeout(300)]

NAME = "smol"
SLOTS = 8
CONTEXT = 1024
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PROMPT = "The capital of France is"
ASK: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "size": {"enum": [1, 2, 3]}},
    "required": ["city", "size"],
    "additionalProperties": False,
}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    own = ("--model_name", str(f32_gguf()), "--infer_type", "llama_cpp")
    engine = ("--ctx-size", str(SLOTS * CONTEXT), "--parallel", str(SLOTS), *LLAMA_CPP_EXACT)
    template = ("--chat-template-file", str(Path(__file__).parents[1] / "chat_with_tools.jinja"))
    folder = tmp_path_factory.mktemp("llama")
    with Pool(folder, *own, "--served_model_name", NAME, "--", *engine, *template) as started:
        yield started.wait_ready()


@pytest.fixture(scope="module")
def client(pool: Pool) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{pool.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def chat(client: OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": NAME, "messages": ASK, **GREEDY, **fields})


def complete(client: OpenAI, **fields: Any) -> Any:
    return client.completions.create(**{"model": NAME, "prompt": PROMPT, **GREEDY, **fields})


def texts_of(chunks: list[Any], num_choices: int) -> list[str]:
    texts = [""] * num_choices
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    return texts


def tool(name: str) -> Any:
    function = {"name": name, "description": "Look a city up.", "parameters": SCHEMA}
    return {"type": "function", "function": function}


# Texts.


def test_a_chat_is_answered_as_the_client_expects(client: OpenAI) -> None:
    answer = chat(client)
    assert "Paris" in answer.choices[0].message.content
    assert (answer.object, answer.model) == ("chat.completion", NAME)
    assert answer.id.startswith("chatcmpl-")
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_a_stream_is_the_same_text_in_pieces(client: OpenAI) -> None:
    chunks = list(chat(client, stream=True))
    assert texts_of(chunks, 1) == [chat(client).choices[0].message.content]
    assert len(chunks) > 3
    assert [chunk.choices[0].delta.role for chunk in chunks].count("assistant") == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_a_completion_is_what_infer_gives(pool: Pool, client: OpenAI) -> None:
    for fields in (GREEDY, {"max_tokens": 12, "temperature": 1.0, "seed": 7}):
        expected = pool.infer(PROMPT, **fields)[0]
        assert complete(client, **fields).choices[0].text == expected


def test_a_streamed_completion_is_the_same_text(client: OpenAI) -> None:
    chunks = list(complete(client, stream=True))
    text = "".join(chunk.choices[0].text for chunk in chunks)
    assert text == complete(client).choices[0].text
    assert chunks[0].id.startswith("cmpl-")


def test_a_hundred_chats_at_once_are_all_answered(pool: Pool) -> None:
    async def ask_all() -> list[Any]:
        async with AsyncOpenAI(base_url=f"{pool.url}/v1", api_key="none") as client:
            asked = [
                client.chat.completions.create(model=NAME, messages=ASK, max_tokens=4, seed=i)
                for i in range(100)
            ]
            return await asyncio.gather(*asked)

    assert all(answer.usage.completion_tokens <= 4 for answer in asyncio.run(ask_all()))


def test_an_async_stream_is_the_same_text(pool: Pool, client: OpenAI) -> None:
    async def read() -> list[Any]:
        async with AsyncOpenAI(base_url=f"{pool.url}/v1", api_key="none") as asking:
            stream = await asking.chat.completions.create(
                model=NAME, messages=ASK, stream=True, **GREEDY
            )
            return [chunk async for chunk in stream]

    assert texts_of(asyncio.run(read()), 1) == [chat(client).choices[0].message.content]


# Several sequences.


def test_n_texts_are_those_of_n_requests_with_the_next_seeds(client: OpenAI) -> None:
    sampled: dict[str, Any] = {"temperature": 1.0, "max_tokens": 12}
    several = complete(client, n=3, seed=5, **sampled)
    alone = [complete(client, seed=seed, **sampled).choices[0].text for seed in (5, 6, 7)]
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert [choice.text for choice in several.choices] == alone


def test_n_texts_are_streamed_side_by_side(client: OpenAI) -> None:
    sampled: dict[str, Any] = {"temperature": 1.0, "seed": 5, "n": 3}
    whole = chat(client, **sampled)
    chunks = list(chat(client, stream=True, **sampled))
    assert texts_of(chunks, 3) == [choice.message.content for choice in whole.choices]
    order = [chunk.choices[0].index for chunk in chunks]
    assert sum(before != after for before, after in pairwise(order)) > 3


def test_a_list_of_prompts_is_numbered_in_order(client: OpenAI) -> None:
    prompts = [PROMPT, "Once upon a time"]
    together = complete(client, prompt=prompts, n=2)
    alone = [complete(client, prompt=prompt).choices[0].text for prompt in prompts]
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in together.choices] == [alone[0]] * 2 + [alone[1]] * 2


def test_a_streamed_list_of_prompts_is_numbered_in_order(client: OpenAI) -> None:
    prompts = [PROMPT, "Once upon a time"]
    texts = ["", ""]
    for chunk in complete(client, prompt=prompts, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [complete(client, prompt=prompt).choices[0].text for prompt in prompts]


def test_a_seed_gives_the_same_text_alone_and_among_others(pool: Pool, client: OpenAI) -> None:
    sampled: dict[str, Any] = {"temperature": 1.0, "seed": 42, "max_tokens": 24}
    alone = chat(client, **sampled).choices[0].message.content
    others = [pool.send_infer("Once upon a time", max_tokens=200, ignore_eos=True) for _ in "1234"]
    wait_until(lambda: pool.workers()[0]["inflight"] == 4, what="others that run")
    among = chat(client, **sampled).choices[0].message.content
    for other in others:
        other.close()
    assert among == alone


# Usage.


def count(pool: Pool, **body: Any) -> int:
    status, answer = pool.post("/tokenize", body)
    assert status == 200, answer
    assert len(answer["tokens"]) == answer["count"]
    return int(answer["count"])


def test_the_usage_of_a_chat_is_what_its_template_has(pool: Pool, client: OpenAI) -> None:
    usage = chat(client, max_tokens=5, extra_body={"ignore_eos": True}).usage
    assert usage.prompt_tokens == count(pool, messages=ASK)
    assert (usage.completion_tokens, usage.total_tokens) == (5, usage.prompt_tokens + 5)


def test_the_usage_of_prompts_counts_each_once(pool: Pool, client: OpenAI) -> None:
    prompts = [PROMPT, "Once upon a time"]
    usage = complete(client, prompt=prompts, n=2, extra_body={"ignore_eos": True}).usage
    assert usage.prompt_tokens == sum(count(pool, prompt=prompt) for prompt in prompts)
    assert usage.completion_tokens == 4 * GREEDY["max_tokens"]


@pytest.mark.parametrize("ask", [chat, complete])
def test_a_stream_tells_its_usage_if_asked(client: OpenAI, ask: Any) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == ask(client).usage.total_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert all(chunk.usage is None for chunk in ask(client, stream=True))


def test_tokens_become_text_again(pool: Pool) -> None:
    text = "naïve 日本語 😀\n"
    tokens = pool.post("/tokenize", {"prompt": text})[1]["tokens"]
    assert pool.post("/detokenize", {"tokens": tokens}) == (200, {"prompt": text})


# Ends.


def test_a_stop_string_is_not_part_of_the_text(client: OpenAI) -> None:
    whole = complete(client).choices[0].text
    found = complete(client, stop=[whole[6:10]]).choices[0]
    assert (found.text, found.finish_reason) == (whole[: whole.index(whole[6:10])], "stop")


def test_a_chat_without_a_limit_ends_with_the_context(pool: Pool) -> None:
    words = "word " * (CONTEXT - 60)
    body = {"messages": [{"role": "user", "content": words}], "ignore_eos": True, "seed": 1}
    status, answer = pool.post(CHAT, body)
    assert status == 200, answer
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] in (CONTEXT, CONTEXT + 1)


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_beyond_the_context_is_refused(client: OpenAI, stream: bool) -> None:
    words = [{"role": "user", "content": "word " * (CONTEXT + 10)}]
    with pytest.raises(BadRequestError) as caught:
        chat(client, messages=words, stream=stream)
    assert caught.value.code == "context_length_exceeded"


# What restricts texts.


@pytest.mark.parametrize("ask", [chat, complete])
def test_a_json_schema_is_kept(client: OpenAI, ask: Any) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
    fields = {"max_tokens": 100, "temperature": 1.0, "seed": 3}
    choice = ask(client, extra_body={"response_format": wanted}, **fields).choices[0]
    found = json.loads(choice.message.content if ask is chat else choice.text)
    assert set(found) == {"city", "size"}


def test_a_json_object_is_one(client: OpenAI) -> None:
    wanted = {"type": "json_object"}
    choice = chat(client, response_format=wanted, max_tokens=300, stop=["}"]).choices[0]
    assert choice.message.content.lstrip().startswith("{")


def test_one_of_some_choices_is_made(client: OpenAI) -> None:
    choices = ['yes, "indeed"', "no\n"]
    for seed in range(3):
        body = {"structured_outputs": {"choice": choices}}
        answer = chat(client, temperature=1.0, seed=seed, extra_body=body)
        assert answer.choices[0].message.content in choices


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "b"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_with_arguments_of_its_schema(
    client: OpenAI, choice: Any, stream: bool
) -> None:
    fields: dict[str, Any] = {"tools": [tool("a"), tool("b")], "tool_choice": choice}
    answer = chat(client, stream=stream, **fields | {"max_tokens": 100})
    if stream:
        deltas = [chunk.choices[0].delta.tool_calls or [] for chunk in answer]
        calls = [call for told in deltas for call in told]
        names = [call.function.name for call in calls if call.function.name]
        arguments = "".join(call.function.arguments or "" for call in calls)
    else:
        assert answer.choices[0].finish_reason == "tool_calls"
        calls = answer.choices[0].message.tool_calls
        names, arguments = [call.function.name for call in calls], calls[0].function.arguments
    assert names[0] in (["a", "b"] if choice == "required" else ["b"])
    assert set(json.loads(arguments)) == {"city", "size"}


# Responses.


def respond(client: OpenAI, **fields: Any) -> Any:
    asked = {"model": NAME, "input": ASK, "temperature": 0, "max_output_tokens": 12}
    return client.responses.create(**{**asked, **fields})


def test_a_response_is_the_same_text_as_a_chat(pool: Pool, client: OpenAI) -> None:
    found = respond(client)
    assert found.output_text == chat(client).choices[0].message.content
    assert found.usage.input_tokens == count(pool, messages=ASK)


def test_a_streamed_response_ends_with_the_whole(client: OpenAI) -> None:
    events = list(respond(client, stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == events[-1].response.output_text == respond(client).output_text
    assert events[0].type == "response.created"
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_a_response_that_is_cut_is_incomplete(client: OpenAI) -> None:
    found = respond(client, max_output_tokens=2)
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_a_response_keeps_to_a_schema(client: OpenAI) -> None:
    wanted = {"format": {"type": "json_schema", "name": "city", "schema": SCHEMA}}
    found = respond(client, text=wanted, max_output_tokens=100)
    assert set(json.loads(found.output_text)) == {"city", "size"}


def test_streamed_responses_are_counted(pool: Pool, client: OpenAI) -> None:
    before = scrape(pool)
    told = list(respond(client, stream=True))[-1].response.usage
    after = scrape(pool)
    name = "gpupool_generated_tokens_total"
    assert total(after, name) - total(before, name) == told.output_tokens


# Embeddings.


def test_texts_that_mean_the_same_have_close_embeddings(tmp_path: Path) -> None:
    own = ("--model_name", str(gguf_path()), "--infer_type", "llama_cpp", "--")
    with Pool(tmp_path, *own, "--embedding", "--pooling", "mean") as embedding:
        embedding.wait_ready()
        texts = ["A cat sat on the mat.", "There was a cat on the mat.", "x = 5; return x"]
        with OpenAI(base_url=f"{embedding.url}/v1", api_key="none") as asking:
            found = asking.embeddings.create(model=str(gguf_path()), input=texts)
            running = embedding.send_infer(PROMPT, max_tokens=1000, ignore_eos=True)
            again = asking.embeddings.create(
                model=str(gguf_path()), input=texts[1], encoding_format="float"
            )
            running.close()
            long = asking.embeddings.create(model=str(gguf_path()), input="word " * 300)
        first, second, other = (item.embedding for item in found.data)
        assert second == pytest.approx(again.data[0].embedding, abs=1e-3)
        assert dot(first, first) == pytest.approx(1.0, abs=1e-3)
        assert dot(first, second) > dot(first, other)
        counted = [count(embedding, prompt=text) for text in texts]
        assert found.usage.prompt_tokens == sum(counted)
        assert long.usage.prompt_tokens > 300
        assert "Paris" in embedding.infer(PROMPT, **GREEDY)[0]


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


# Log-probabilities.


def test_logprobs_are_those_of_infer(pool: Pool, client: OpenAI) -> None:
    body = {"instances": PROMPT, "params": {**GREEDY, "logprobs": 2}, "detail": True}
    expected = pool.post("/infer", body)[1][0]["logprobs"]
    found = complete(client, logprobs=2).choices[0].logprobs
    assert found.tokens == [token["token"] for token in expected]
    assert found.token_logprobs == pytest.approx([t["logprob"] for t in expected], abs=1e-3)
    assert "".join(found.tokens) == complete(client).choices[0].text


@pytest.mark.parametrize("top", [None, 3])
def test_a_chat_tells_log_probabilities(client: OpenAI, top: int | None) -> None:
    choice = chat(client, logprobs=True, top_logprobs=top).choices[0]
    tokens = choice.logprobs.content
    assert "".join(token.token for token in tokens) == choice.message.content
    assert all(len(token.top_logprobs) == (top or 0) for token in tokens)
    assert all(token.logprob <= 0 for token in tokens)


# Refusals.


@pytest.mark.parametrize(
    ("path", "fields", "code"),
    [
        (CHAT, {"echo": True}, "unsupported"),
        (CHAT, {"stop_token_ids": [5]}, "unsupported"),
        (COMPLETIONS, {"suffix": "x"}, "unsupported"),
        (COMPLETIONS, {"best_of": 3}, "unsupported"),
        (COMPLETIONS, {"min_tokens": 3}, "unsupported"),
        (COMPLETIONS, {"mirostat": 1}, "unknown_parameter"),
        ("/v1/embeddings", {"input": "x"}, "unsupported"),
        ("/v1/rerank", {"query": "x", "documents": ["y"]}, "unsupported"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_what_llama_cpp_cannot_do_is_refused(
    pool: Pool, path: str, fields: dict[str, Any], code: str
) -> None:
    about = {CHAT: {"messages": ASK}, COMPLETIONS: {"prompt": PROMPT}}.get(path, {})
    status, answer = pool.post(path, about | fields)
    assert (status, answer["error"]["code"]) == (400, code), answer


def test_a_grammar_that_is_none_is_refused(pool: Pool) -> None:
    status, answer = pool.post(CHAT, {"messages": ASK, "grammar": "root ::= ("})
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error"), answer


# Clients that leave.


def start_chat(pool: Pool, *, stream: bool, num_tokens: int = 900) -> socket.socket:
    """One that runs for long."""
    fields = {"stream": stream, "ignore_eos": True, "max_tokens": num_tokens, "seed": 1}
    return pool.send(CHAT, {"messages": ASK, **fields})


def processes(pool: Pool) -> tuple[psutil.Process, psutil.Process]:
    """The worker and llama.cpp's process."""
    worker = psutil.Process(pool.workers()[0]["pid"])
    (child,) = [one for one in worker.children() if "llama_cpp_server" in " ".join(one.cmdline())]
    return worker, child


def cpu_s(process: psutil.Process) -> float:
    """What it has computed so far, in seconds of one core."""
    times = process.cpu_times()
    return times.user + times.system


def is_idle(process: psutil.Process) -> bool:
    """Whether it does not compute for a fifth of a second. Its CPU time alone would not say: where
    others run too, a process that computes may be given no core for as long."""
    for _ in range(10):
        if any(state != "S" for state in thread_states(process.pid)):
            return False
        with pytest.raises(psutil.TimeoutExpired):
            process.wait(0.02)
    return True


def thread_states(pid: int) -> list[str]:
    """As the kernel tells them: S sleeps, R runs or would if it had a core."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # It has ended.
            found.append((task / "stat").read_text().rpartition(")")[2].split()[0])
    return found


WORDS = "word " * (CONTEXT - 60)
LONG: dict[str, dict[str, Any]] = {
    CHAT: {"messages": ASK, "ignore_eos": True, "max_tokens": 900},
    COMPLETIONS: {"prompt": WORDS, "max_tokens": 1},
    "/infer": {"instances": "Hi", "params": {"ignore_eos": True, "max_tokens": 900}},
}
"""Ten seconds of work and more each: two long texts and a long prompt."""


@pytest.mark.parametrize(
    ("path", "stream"),
    [(CHAT, True), (CHAT, False), (COMPLETIONS, True), (COMPLETIONS, False), ("/infer", None)],
)
def test_a_client_that_leaves_stops_its_work(pool: Pool, path: str, stream: bool | None) -> None:
    """Measured in what llama.cpp computes after the client has left, as the time that this takes
    depends on what else runs on the machine: half a second of two cores."""
    _, child = processes(pool)
    wait_until(lambda: is_idle(child), what="llama.cpp at rest")
    begun = cpu_s(child)
    body = LONG[path] | ({} if stream is None else {"stream": stream})
    with pool.send(path, body):
        wait_until(lambda: cpu_s(child) - begun > 0.3, what="llama.cpp at work")
    left = cpu_s(child)
    wait_until(lambda: is_idle(child), what="llama.cpp at rest again")
    assert cpu_s(child) - left < 1.0


def leave(pool: Pool, num_clients: int) -> None:
    """Clients that go away amid their streams, SLOTS at a time."""
    for _ in range(num_clients // SLOTS + 1):
        clients = [start_chat(pool, stream=True) for _ in range(SLOTS)]
        for client in clients:
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
            client.close()


def holdings(pool: Pool) -> list[tuple[int, int]]:
    """Threads and open files of the worker and of llama.cpp."""
    return [(process.num_threads(), process.num_fds()) for process in processes(pool)]


# A handler's thread made when all others were busy, and the connection that asks.
SPARE = 4


def check_nothing_left(pool: Pool, num_clients: int) -> None:
    leave(pool, 3 * SLOTS)  # threads that are made once
    idle = wait_until(lambda: pool.workers()[0]["inflight"] == 0 and holdings(pool))
    leave(pool, num_clients)
    wait_until(lambda: pool.workers()[0]["inflight"] == 0, what="no request in flight")

    def is_as_before() -> bool:
        pairs = zip(holdings(pool), idle, strict=True)
        return all(now <= then + SPARE for one in pairs for now, then in zip(*one, strict=True))

    wait_until(is_as_before, what=f"no more than {idle}")
    wait_until(lambda: is_idle(processes(pool)[1]), what="llama.cpp at rest")


def test_fifty_broken_streams_leave_nothing(pool: Pool, client: OpenAI) -> None:
    check_nothing_left(pool, 50)
    assert "Paris" in chat(client).choices[0].message.content


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_broken_streams_leave_nothing(pool: Pool) -> None:
    check_nothing_left(pool, 1000)


# Engines that die.


def test_a_stream_whose_engine_dies_ends_with_an_error(tmp_path: Path) -> None:
    with (
        engine_pool("llama_cpp", tmp_path, is_exact=False) as mortal,
        start_chat(mortal, stream=True) as client,
    ):
        told = client.recv(1 << 16)
        assert told.startswith(b"HTTP/1.1 200")
        processes(mortal)[1].kill()
        while received := client.recv(1 << 16):
            told += received
            if b'"error"' in told:
                break
        last = told.split(b"data: ")[-1]
        assert json.loads(last[: last.index(b"\n")])["error"]["type"] == "unavailable_error"
        assert b"[DONE]" not in told


def test_a_request_whose_engine_dies_before_its_answer_is_run_again(tmp_path: Path) -> None:
    with (
        engine_pool("llama_cpp", tmp_path, is_exact=False) as mortal,
        start_chat(mortal, stream=False, num_tokens=100) as client,
    ):
        child = processes(mortal)[1]
        wait_until(lambda: not is_idle(child), what="llama.cpp at work")
        child.kill()
        client.settimeout(120)
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
