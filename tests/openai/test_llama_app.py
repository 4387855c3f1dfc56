"""The application in front of llama.cpp's server, before a scripted one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gpupool.engines import llama_cpp_openai
from gpupool.errors import Cancelled
from tests.openai.llama_server import CHAT, DONE, EVENTS, Stage, delta, render, stage

TIMEOUT_S = 10.0


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Callable[[Stage], Awaitable[Any]]], Any]:
    """Runs a scenario on an event loop of its own."""

    def start(scenario: Callable[[Stage], Awaitable[Any]]) -> Any:
        async def work() -> Any:
            async with asyncio.timeout(TIMEOUT_S), stage(tmp_path) as made:
                found = await scenario(made)
                assert made.num_inflight == 0
                return found

        return asyncio.run(work())

    return start


Run = Callable[[Callable[[Stage], Awaitable[Any]]], Any]


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_an_answer_is_gathered_from_a_stream(run: Run) -> None:
    status, answer = run(lambda made: made.client().ask())
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == "ab"
    assert answer["usage"]["total_tokens"] == 7


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_events_may_come_in_any_pieces(run: Run, size: int) -> None:
    whole = b": ping\n\n" + render(*EVENTS) + DONE
    pieces: list[bytes | None] = [whole[at : at + size] for at in range(0, len(whole), size)]

    async def scenario(made: Stage) -> Any:
        made.server.script = pieces
        return await made.client().ask(stream=True)

    _, body = run(scenario)
    events = [line for line in body.split(b"\n\n") if line]
    texts = [json.loads(event[6:])["choices"] for event in events[:-1]]
    assert [choices[0]["delta"]["content"] for choices in texts[:-2]] == ["a", "b"]
    assert events[-1] == b"data: [DONE]"


def test_no_request_waits_inside_llama_cpp(run: Run) -> None:
    async def scenario(made: Stage) -> Stage:
        await asyncio.gather(*(made.client().ask(n=3) for _ in range(4)))
        return made

    made = run(scenario)
    assert len(made.server.asked) == 12
    assert made.server.most_running == 2
    assert {asked["id_slot"] for asked in made.server.asked} == {0, 1}


def test_a_chat_goes_on_in_the_slot_that_knows_it(run: Run) -> None:
    async def scenario(made: Stage) -> list[int]:
        turns = [[{"role": "user", "content": name * 50}] for name in "ab"]
        for _ in range(3):
            for messages in turns:
                await made.client().ask(messages=messages)
                messages += [
                    {"role": "assistant", "content": "ab"},
                    {"role": "user", "content": "go on"},
                ]
        return [asked["id_slot"] for asked in made.server.asked]

    slots = run(scenario)
    assert slots == slots[:2] * 3
    assert len(set(slots)) == 2


def test_every_event_shows_that_the_engine_lives(run: Run) -> None:
    step = delta("") | {"prompt_progress": {"total": 9}}

    async def scenario(made: Stage) -> int:
        made.server.script = [render(step, step), render(*EVENTS), DONE]
        await made.client().ask()
        return made.num_steps

    assert run(scenario) == 2 + len(EVENTS)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_closes_every_connection(run: Run, stream: bool, n: int) -> None:
    async def scenario(made: Stage) -> int:
        made.server.script = [render(*EVENTS[:1]), None]
        client = made.client()
        asking = asyncio.create_task(client.ask(stream=stream, n=n))
        await until(lambda: made.server.num_running == n)
        assert made.num_inflight == 1
        client.left.set()
        assert (await asyncio.wait([asking], timeout=5))[0], "it goes on"
        assert isinstance(asking.exception(), Cancelled)
        await until(lambda: made.server.num_running == 0)
        return made.server.num_left

    assert run(scenario) == n


def test_a_slot_is_free_when_its_client_has_left(run: Run) -> None:
    async def scenario(made: Stage) -> Any:
        made.server.script = [render(*EVENTS[:1]), None]
        clients = [made.client() for _ in range(3)]
        asking = [asyncio.create_task(client.ask()) for client in clients]
        await until(lambda: made.server.num_running == 2)
        for client in clients:
            client.left.set()
        await asyncio.gather(*asking, return_exceptions=True)
        made.server.script = [render(*EVENTS), DONE]
        return await made.client().ask()

    assert run(scenario)[0] == 200


REFUSALS = {
    "text": ({"code": 400, "message": "no", "type": "invalid_request_error"}, 400, None),
    "too long": (
        {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 9, "n_ctx": 8},
        400,
        "context_length_exceeded",
    ),
    "longer than a step": (
        {
            "code": 500,
            "message": "input (9 tokens) is too large to process. increase the physical batch size"
            " (current batch size: 8)",
            "type": "server_error",
        },
        400,
        "context_length_exceeded",
    ),
    "not there": (
        {"code": 501, "message": "no", "type": "not_supported_error"},
        400,
        "unsupported",
    ),
    "failed": ({"code": 500, "message": "/path", "type": "server_error"}, 500, None),
}


@pytest.mark.parametrize(("error", "status", "code"), REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("comes", ["at once", "as the first event"])
def test_errors_of_llama_cpp_are_ours(
    run: Run, error: Any, status: int, code: str | None, comes: str
) -> None:
    async def scenario(made: Stage) -> Any:
        is_event = comes == "as the first event"
        made.server.status = 200 if is_event else error["code"]
        raw = json.dumps({"error": error}).encode()
        made.server.script = [b"data: " + raw + b"\n\n" if is_event else raw]
        return await made.client().ask(stream=True)

    found, answer = run(scenario)
    assert (found, answer["error"]["code"]) == (status, code)
    assert "/path" not in answer["error"]["message"]


@pytest.mark.parametrize("breaks", [True, False], ids=["the connection", "the stream"])
@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_that_breaks_ends_with_an_error(
    run: Run, monkeypatch: pytest.MonkeyPatch, breaks: bool, n: int
) -> None:
    monkeypatch.setattr(llama_cpp_openai, "EXIT_NOTICE_S", 0.05)

    async def scenario(made: Stage) -> Any:
        made.server.script, made.server.breaks = [render(*EVENTS[:2])], breaks
        return await made.client().ask(stream=True, n=n)

    _, body = run(scenario)
    last = body.strip().split(b"\n\n")[-1]
    assert json.loads(last.removeprefix(b"data: "))["error"]["type"] == "engine_error"
    assert b"[DONE]" not in body


def test_an_answer_that_breaks_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp_openai, "EXIT_NOTICE_S", 0.05)

    async def scenario(made: Stage) -> Any:
        made.server.script, made.server.breaks = [render(*EVENTS[:2])], True
        return await made.client().ask()

    status, answer = run(scenario)
    assert (status, answer["error"]["type"]) == (500, "engine_error")


def test_the_tokens_of_a_chat_are_those_of_its_template(run: Run) -> None:
    async def scenario(made: Stage) -> Any:
        made.server.script = [b'{"prompt": "<user>Hi", "tokens": [0, 2]}']
        found = await made.client().ask(
            "/tokenize", messages=[{"role": "user", "content": "Hi"}], return_token_strs=True
        )
        return found, made.server.paths, made.server.asked

    (_, answer), paths, asked = run(scenario)
    assert paths == ["/apply-template", "/tokenize"]
    assert asked[1]["content"] == "<user>Hi"
    assert answer == {
        "count": 2,
        "max_model_len": 512,
        "tokens": [0, 2],
        "token_strs": ["a", "c"],
    }


@pytest.mark.parametrize("tokens", [[3], [-1], ["a"], [True], "a", None])
def test_tokens_that_are_none_of_the_models_do_not_reach_llama_cpp(run: Run, tokens: Any) -> None:
    async def scenario(made: Stage) -> Any:
        status, answer = await made.client().ask("/detokenize", tokens=tokens)
        return status, answer["error"]["param"], made.server.asked

    assert run(scenario) == (400, "tokens", [])


def test_each_text_has_an_embedding_in_its_place(run: Run) -> None:
    async def scenario(made: Stage) -> Any:
        one = {"data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 3}}
        made.server.script = [json.dumps(one).encode()]
        found = await made.client().ask("/v1/embeddings", input=["a", [1, 2], "c"])
        return found, [asked["input"] for asked in made.server.asked], made.server.most_running

    (status, answer), inputs, most = run(scenario)
    assert status == 200
    assert [item["index"] for item in answer["data"]] == [0, 1, 2]
    assert answer["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    assert inputs == ["a", [1, 2], "c"]
    assert most == 1  # side by side, llama.cpp computes them wrongly


def ranked(score: Any) -> list[bytes | None]:
    """llama.cpp's answer about one document."""
    result = {"index": 0, "relevance_score": score}
    return [json.dumps({"results": [result], "usage": {"prompt_tokens": 4}}).encode()]


def test_documents_are_ranked_side_by_side_in_slots_of_their_own(run: Run) -> None:
    async def scenario(made: Stage) -> Any:
        made.server.script = ranked(0.5)
        found = await made.client().ask("/v2/rerank", query="q", documents=["a", "b", "c"])
        return found, made.server

    (status, answer), server = run(scenario)
    assert status == 200
    assert len(answer["results"]) == 3
    assert answer["usage"] == {"prompt_tokens": 12, "total_tokens": 12}
    assert [asked["documents"] for asked in server.asked] == [["a"], ["b"], ["c"]]
    assert set(server.paths) == {"/v1/rerank"}
    assert server.most_running == 2  # as many as there are slots


@pytest.mark.parametrize(("top_n", "expected"), [(None, [1, 2, 0]), (2, [1, 2])])
def test_the_best_document_comes_first(run: Run, top_n: int | None, expected: list[int]) -> None:
    """Where one engine ranks all of them; a pool's gate merges what many have said."""

    async def scenario(made: Stage) -> Any:
        made.server.script_of = lambda asked: ranked(len(asked["documents"][0]))
        fields = {"query": "q", "documents": ["a", "aaa", "aa"], "top_n": top_n}
        return (await made.client().ask("/v1/rerank", **fields))[1]

    answer = run(scenario)
    assert [result["index"] for result in answer["results"]] == expected
    assert answer["usage"] == {"prompt_tokens": 12, "total_tokens": 12}


def test_documents_of_equal_scores_keep_their_order(run: Run) -> None:
    """llama.cpp's own rounding differs from slot to slot, so no pair of equal documents of a real
    model is sure to have equal scores."""

    async def scenario(made: Stage) -> Any:
        made.server.script = ranked(0.5)
        return await made.client().ask("/v1/rerank", query="q", documents=["a", "b", "c"])

    assert [result["index"] for result in run(scenario)[1]["results"]] == [0, 1, 2]


def test_every_document_shows_that_the_engine_lives(run: Run) -> None:
    async def scenario(made: Stage) -> int:
        made.server.script = ranked(0.5)
        await made.client().ask("/rerank", query="q", documents=["a", "b"])
        return made.num_steps

    assert run(scenario) == 2


@pytest.mark.parametrize("wanted", [None, True, False])
def test_documents_are_told_unless_they_are_not_wanted(run: Run, wanted: bool | None) -> None:
    async def scenario(made: Stage) -> Any:
        made.server.script = ranked(0.5)
        fields = {"query": "q", "documents": "a", "return_documents": wanted}
        return await made.client().ask("/v1/rerank", **fields)

    (result,) = run(scenario)[1]["results"]
    expected = {"index": 0, "relevance_score": 0.5}
    assert result == (expected if wanted is False else expected | {"document": {"text": "a"}})


def test_a_score_that_is_no_number_is_the_engines_error(run: Run) -> None:
    async def scenario(made: Stage) -> Any:
        made.server.script = ranked(None)
        return await made.client().ask("/v1/rerank", query="q", documents=["a"])

    status, answer = run(scenario)
    assert (status, answer["error"]["type"]) == (500, "engine_error")


def test_a_client_that_leaves_ends_the_ranking_of_its_documents(run: Run) -> None:
    async def scenario(made: Stage) -> int:
        made.server.script = [None]
        client = made.client()
        asking = asyncio.create_task(client.ask("/v1/rerank", query="q", documents=["a"] * 9))
        await until(lambda: made.server.num_running == 2)
        client.left.set()
        assert (await asyncio.wait([asking], timeout=5))[0], "it goes on"
        assert isinstance(asking.exception(), Cancelled)
        await until(lambda: made.server.num_running == 0)
        return len(made.server.asked)

    assert run(scenario) == 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": [1, 2], "documents": ["a"]}, "query"),
        ({"query": "q"}, "documents"),
        ({"query": "q", "documents": []}, "documents"),
        ({"query": "q", "documents": ["a", {"text": "b"}]}, "documents[1]"),
        ({"query": "q", "documents": ["a"], "max_tokens_per_doc": 5}, "max_tokens_per_doc"),
    ],
    ids=["no query", "tokens", "no documents", "none", "an object", "a cut"],
)
def test_what_cannot_be_ranked_does_not_reach_llama_cpp(
    run: Run, fields: dict[str, Any], param: str
) -> None:
    async def scenario(made: Stage) -> Any:
        status, answer = await made.client().ask("/v1/rerank", **fields)
        return status, answer["error"]["param"], made.server.asked

    assert run(scenario) == (400, param, [])


def test_a_chat_is_asked_for_at_llama_cpps_own_route(run: Run) -> None:
    async def scenario(made: Stage) -> list[str]:
        await made.client().ask()
        return made.server.paths

    assert run(scenario) == [CHAT]
