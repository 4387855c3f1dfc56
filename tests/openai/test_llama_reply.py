"""Answers out of the events that llama.cpp's handlers send."""

from __future__ import annotations

from typing import Any

import pytest

from gpupool.engines.base import ModelInfo
from gpupool.engines.llama_cpp_ask import ask_chat, ask_completion
from gpupool.engines.llama_cpp_reply import Reply
from gpupool.engines.llama_cpp_responses import ResponsesReply

MODEL = ModelInfo(name="M", context_tokens=512, vocab_size=1000, slots=4)
MESSAGES = [{"role": "user", "content": "Hi"}]
ROLE = {"role": "assistant", "content": None}

Json = dict[str, Any]


def chat_reply(**fields: Any) -> Reply:
    return Reply(ask_chat({"messages": MESSAGES, **fields}, MODEL, has_tools=True), "served")


def completion_reply(prompt: Any = "Hi", **fields: Any) -> Reply:
    return Reply(ask_completion({"prompt": prompt, **fields}, MODEL, []), "served")


def event(delta: Json | None = None, reason: str | None = None, **more: Any) -> Json:
    """As llama.cpp sends one for a chat."""
    choice: Json = {"index": 0, "delta": delta or {}, "finish_reason": reason}
    logprobs = more.pop("logprobs", None)
    if logprobs is not None:
        choice["logprobs"] = {"content": logprobs}
    head = {"id": "chatcmpl-x", "created": 1, "model": "/path/to.gguf", "system_fingerprint": "b1"}
    return head | {"choices": [choice]} | more


def usage(prompt: int = 5, generated: int = 3, cached: int = 0) -> Json:
    told = {"prompt_tokens": prompt, "completion_tokens": generated}
    details = {"prompt_tokens_details": {"cached_tokens": cached}}
    return {"choices": [], "usage": told | details, "timings": {"prompt_ms": 1}}


def text_event(text: str, reason: str | None = None, **more: Any) -> Json:
    return {"choices": [{"text": text, "index": 0, "finish_reason": reason}], **more}


def logprob(token: str, value: float, **others: float) -> Json:
    top = [{"id": 1, "token": name, "logprob": other} for name, other in others.items()]
    return {"id": 2, "token": token, "logprob": value, "bytes": [], "top_logprobs": top}


def chunks(reply: Reply, *events: Json, index: int = 0) -> list[Json]:
    return [chunk for told in events if (chunk := reply.chunk(index, told)) is not None]


def gathered(reply: Reply, *events: Json, index: int = 0) -> Json:
    for told in events:
        reply.take(index, told)
    return reply.whole()


def test_steps_through_the_prompt_are_not_told() -> None:
    step = event(ROLE, prompt_progress={"total": 9})
    assert chunks(chat_reply(stream=True), step) == []


def test_the_first_chunk_tells_the_role_and_no_other() -> None:
    told = chunks(
        chat_reply(stream=True), event(ROLE), event({"content": "a"}), event({"content": "b"})
    )
    deltas = [chunk["choices"][0]["delta"] for chunk in told]
    assert deltas == [{"role": "assistant", "content": "a"}, {"content": "b"}]


def test_a_stream_that_is_only_its_end_tells_the_role_too() -> None:
    (told,) = chunks(chat_reply(stream=True), event(reason="stop"))
    assert told["choices"][0]["delta"]["role"] == "assistant"
    assert told["choices"][0]["finish_reason"] == "stop"


def test_every_chunk_has_the_same_id_and_the_served_name() -> None:
    told = chunks(chat_reply(stream=True), event({"content": "a"}), event(reason="stop"))
    assert len({chunk["id"] for chunk in told}) == 1
    assert {chunk["model"] for chunk in told} == {"served"}
    assert told[0]["id"].startswith("chatcmpl-")


def test_chunks_of_several_sequences_share_the_id() -> None:
    reply = chat_reply(stream=True, n=2)
    told = [
        *chunks(reply, event({"content": "a"})),
        *chunks(reply, event({"content": "b"}), index=1),
    ]
    assert [chunk["choices"][0]["index"] for chunk in told] == [0, 1]
    assert len({chunk["id"] for chunk in told}) == 1


def test_timings_are_not_told() -> None:
    reply = chat_reply(stream=True)
    told = chunks(reply, event({"content": "a"}, timings={"prompt_ms": 1}))
    assert "timings" not in told[0]
    assert "timings" not in gathered(chat_reply(), event(reason="stop"), usage())


def test_the_usage_is_an_event_of_its_own() -> None:
    reply = completion_reply(stream=True)
    told = chunks(reply, text_event("a"), text_event("", "stop", **{"usage": usage()["usage"]}))
    assert all("usage" not in chunk for chunk in told)
    last = reply.usage_chunk()
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 8)


def test_a_prompt_counts_once_however_many_sequences_it_has() -> None:
    reply = completion_reply(["a", "b"], n=2)
    for index, told in enumerate([usage(5, 1, 2), usage(5, 2, 2), usage(7, 3), usage(7, 4)]):
        reply.take(index, told)
    found = reply.whole()["usage"]
    assert (found["prompt_tokens"], found["completion_tokens"], found["total_tokens"]) == (
        12,
        10,
        22,
    )
    assert found["prompt_tokens_details"] == {"cached_tokens": 2}


def test_an_answer_is_complete_when_every_sequence_has_told_its_end() -> None:
    reply = chat_reply(n=2)
    for index in range(2):
        assert not reply.is_complete
        reply.take(index, event(reason="stop"))
        reply.take(index, usage())
    assert reply.is_complete


def test_pieces_make_a_message() -> None:
    told = [{"reasoning_content": "So"}, {"content": "a"}, {"content": "b"}]
    whole = gathered(chat_reply(), event(ROLE), *map(event, told), event(reason="length"), usage())
    (choice,) = whole["choices"]
    assert choice["message"] == {"role": "assistant", "content": "ab", "reasoning_content": "So"}
    assert (choice["finish_reason"], whole["object"]) == ("length", "chat.completion")


def test_pieces_make_tool_calls() -> None:
    def call(index: int, arguments: str, **more: str) -> Json:
        name = {"name": more.pop("name")} if "name" in more else {}
        return {
            "tool_calls": [{"index": index, "function": name | {"arguments": arguments}, **more}]
        }

    told = [call(0, "{", id="x", name="f"), call(0, "}"), call(1, "[]", id="y", name="g")]
    whole = gathered(chat_reply(), *map(event, told), event(reason="tool_calls"), usage())
    message = whole["choices"][0]["message"]
    assert message["content"] is None
    assert [call["id"] for call in message["tool_calls"]] == ["x", "y"]
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "f", "arguments": "{}"},
        {"name": "g", "arguments": "[]"},
    ]


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_a_text_that_must_be_a_call_is_told_as_one(reason: str) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    asked: Json = {"tools": [tool], "tool_choice": "required"}
    told = [{"content": '{"name": "f", '}, {"content": '"arguments": {}'}, {"content": "}"}]
    events = [event(ROLE), *map(event, told), event(reason=reason)]
    choice = gathered(chat_reply(**asked), *events, usage())["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": "{}"}
    assert choice["finish_reason"] == ("tool_calls" if reason == "stop" else "length")
    chunk, *_ = chunks(chat_reply(stream=True, **asked), *events)
    assert chunk["choices"][0]["delta"]["content"] is None


def test_alternatives_that_were_not_asked_for_are_not_told() -> None:
    """llama.cpp has none without at least one."""
    reply = chat_reply(logprobs=True)
    told = event({"content": "a"}, logprobs=[logprob("a", -1.0, a=-1.0)])
    (entry,) = gathered(reply, told)["choices"][0]["logprobs"]["content"]
    assert (entry["token"], entry["logprob"], entry["top_logprobs"]) == ("a", -1.0, [])


def test_completions_tell_log_probabilities_in_their_own_shape() -> None:
    reply = completion_reply(logprobs=1)
    first = text_event("ab")
    first["choices"][0]["logprobs"] = {"content": [logprob("ab", -1.0, x=-0.5)]}
    second = text_event("c")
    second["choices"][0]["logprobs"] = {"content": [logprob("c", -2.0, c=-2.0)]}
    assert gathered(reply, first, second)["choices"][0]["logprobs"] == {
        "tokens": ["ab", "c"],
        "token_logprobs": [-1.0, -2.0],
        "top_logprobs": [{"x": -0.5, "ab": -1.0}, {"c": -2.0}],
        "text_offset": [0, 2],
    }


def response(*, limit: int | None = None) -> tuple[ResponsesReply, Json]:
    reply = ResponsesReply({"input": "Hi", "max_output_tokens": limit}, MODEL, "served")
    told = {"input_tokens": 5, "output_tokens": 4, "total_tokens": 9}
    inner = {
        "id": "resp_1",
        "status": "completed",
        "model": "/path.gguf",
        "output": [],
        "usage": told,
    }
    return reply, {"type": "response.completed", "response": inner, "timings": {}}


def test_a_response_says_what_clients_types_require() -> None:
    reply, last = response()
    assert reply.take(last) is not None
    assert reply.response is not None
    assert reply.response["model"] == "served"
    assert reply.response["usage"]["output_tokens_details"] == {"reasoning_tokens": 0}
    assert reply.response["tools"] == []


def test_a_response_that_reached_its_limit_is_incomplete() -> None:
    reply, last = response(limit=4)
    told = reply.take(last)
    assert told is not None
    assert told["type"] == "response.incomplete"
    assert told["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_events_of_a_response_are_numbered_and_say_which_item_they_are_about() -> None:
    reply, last = response()
    events = [
        {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress"}},
        {"type": "response.in_progress", "response": {"id": "resp_1"}, "prompt_progress": {}},
        {"type": "response.in_progress", "response": {"id": "resp_1"}, "prompt_progress": {}},
        {"type": "response.output_item.added", "item": {"id": "rs_1"}},
        {"type": "response.output_item.added", "item": {"id": "msg_1"}},
        {"type": "response.output_text.delta", "item_id": "msg_1", "delta": "a"},
        last,
    ]
    told = [found for one in events if (found := reply.take(one)) is not None]
    assert [one["sequence_number"] for one in told] == list(range(6))
    assert not any("prompt_progress" in one or "timings" in one for one in told)
    delta = told[4]
    assert (delta["output_index"], delta["content_index"]) == (1, 0)
