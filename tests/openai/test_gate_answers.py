"""What the gate makes of an engine's answer: errors, streams, counts, a dead engine."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from gpupool.call import Call
from gpupool.errors import Moved
from gpupool.mailbox import Message
from gpupool.scoreboard import Row
from gpupool.slots import Slots
from gpupool.totals import PoolTotals
from tests.openai.chats import HELLO
from tests.openai.client import ABLE, CHAT, COMPLETIONS, USAGE, WHOLE, Script, ask, gate_around
from tests.test_app import make_client


def event(**content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
TOKEN = event(choices=[{"delta": {"content": "a"}}])
LAST = event(choices=[], usage=USAGE)


VLLMS = {"error": {"message": "no", "type": "BadRequestError", "param": "n", "code": 400}}
LLAMAS = {"error": {"code": 400, "message": "no", "type": "exceed_context_size_error"}}


@pytest.mark.parametrize("content", [VLLMS, LLAMAS])
def test_the_engines_errors_get_our_shape(content: dict[str, Any]) -> None:
    answer = ask(gate_around(Script(400, content)), CHAT, HELLO)
    assert answer.status == 400
    assert answer.error["message"] == "no"
    assert answer.error["type"] == "invalid_request_error"
    assert set(answer.error) == {"message", "type", "param", "code"}
    assert answer.error["code"] is None


@pytest.mark.parametrize("status", [422, 501])
def test_what_the_engine_will_not_do_is_a_400(status: int) -> None:
    content = {"error": {"message": "no", "code": status}}
    assert ask(gate_around(Script(status, content)), CHAT, HELLO).status == 400


def test_the_text_of_an_engines_failure_stays_here() -> None:
    content = {"error": {"message": "/secret/path", "code": 500}}
    answer = ask(gate_around(Script(500, content)), CHAT, HELLO)
    assert (answer.status, answer.error["type"]) == (500, "engine_error")
    assert b"secret" not in answer.body


def test_no_browser_may_guess_what_an_answer_is() -> None:
    for script in (Script(content=WHOLE), Script(400, VLLMS), Script(events=[TOKEN, LAST, DONE])):
        answer = ask(gate_around(script), CHAT, HELLO | {"stream": bool(script.events)})
        assert answer.headers["x-content-type-options"] == "nosniff"
    for path in ("/livez", "/pool", "/nowhere"):
        assert make_client().get(path).headers["X-Content-Type-Options"] == "nosniff"


def test_an_exception_of_the_application_is_a_500_that_tells_nothing() -> None:
    answer = ask(gate_around(Script(raises=ValueError("/secret/path"))), CHAT, HELLO)
    assert answer.status == 500
    assert b"secret" not in answer.body


# Streams.


def test_a_stream_is_passed_on_event_by_event() -> None:
    script = Script(events=[TOKEN, TOKEN, LAST, DONE])
    answer = ask(gate_around(script), CHAT, HELLO | {"stream": True})
    assert answer.parts == [TOKEN, TOKEN, DONE, b""]
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.is_complete


def test_a_streams_usage_is_for_who_asked_for_it() -> None:
    script = Script(events=[TOKEN, LAST, DONE])
    asked = HELLO | {"stream": True, "stream_options": {"include_usage": True}}
    assert ask(gate_around(script), CHAT, asked).body == TOKEN + LAST + DONE


def test_the_engine_is_always_asked_for_a_streams_usage() -> None:
    script = Script(events=[TOKEN, LAST, DONE])
    ask(gate_around(script), CHAT, HELLO | {"stream": True})
    assert script.asked[0]["stream_options"] == {"include_usage": True}


def test_a_stream_that_breaks_ends_with_an_error_and_without_done() -> None:
    broken = event(error={"message": "/secret/path", "code": 500})
    script = Script(events=[TOKEN, broken, DONE])
    answer = ask(gate_around(script), CHAT, HELLO | {"stream": True})
    events = answer.body.split(b"\n\n")
    assert events[0] + b"\n\n" == TOKEN
    assert json.loads(events[1].removeprefix(b"data: "))["error"]["type"] == "engine_error"
    assert events[2:] == [b""]
    assert answer.is_complete


@pytest.mark.parametrize("is_dead", [False, True])
def test_a_stream_whose_application_raises_ends_with_an_error(is_dead: bool) -> None:
    script = Script(events=[TOKEN], raises=RuntimeError("/secret"))
    gate = gate_around(script, is_dead=lambda: is_dead)
    answer = ask(gate, CHAT, HELLO | {"stream": True})
    assert b'"error"' in answer.body
    assert b"DONE" not in answer.body
    assert b"secret" not in answer.body
    assert answer.is_complete


# Counting.


@pytest.mark.parametrize(
    "script", [Script(content=WHOLE), Script(events=[TOKEN, LAST, DONE])], ids=["whole", "stream"]
)
def test_tokens_and_requests_are_counted(script: Script) -> None:
    totals = PoolTotals(1)[0]
    gate = gate_around(script, totals=totals)
    ask(gate, CHAT, HELLO | {"stream": bool(script.events)})
    assert (totals.prompt_tokens, totals.generated_tokens) == (5, 7)
    assert totals.requests() == {(CHAT, 200, ""): 1}


def test_refused_requests_are_counted_as_what_they_were_answered() -> None:
    totals = PoolTotals(1)[0]
    gate = gate_around(Script(content=WHOLE), totals=totals)
    ask(gate, CHAT, {})
    ask(gate, "/v1/nowhere", {})
    assert totals.requests() == {(CHAT, 400, ""): 1, ("/v1/other", 404, ""): 1}
    assert totals.generated_tokens == 0


def test_only_generations_are_measured() -> None:
    totals = PoolTotals(1)[0]
    able = replace(ABLE, fields=ABLE.fields | {"/tokenize": frozenset({"prompt"})})
    gate = gate_around(Script(content=WHOLE), totals=totals, able=able)
    ask(gate, "/tokenize", {"prompt": "a"})
    ask(gate, "/v1/models", method="GET")
    assert sum(totals.observations("request_duration_seconds").counts) == 0
    ask(gate, CHAT, HELLO)
    assert sum(totals.observations("request_duration_seconds").counts) == 1


def test_a_request_holds_a_slot_for_each_of_its_sequences() -> None:
    slots = Slots(Row())
    slots.take()
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(slots.count)
        await Script(content=WHOLE)(scope, receive, send)

    ask(gate_around(app), COMPLETIONS, {"prompt": ["a", "b", "c"], "n": 2}, call=Call(slots))
    assert seen == [6]


# An engine that dies.


def moving_call() -> Call:
    """As of a worker of a pool, where others can answer."""
    return Call(None, lambda: Message("fanout", 0))


@pytest.mark.parametrize(
    "script",
    [Script(500, {"error": {"message": "dead"}}), Script(raises=RuntimeError("dead"))],
    ids=["answers 500", "raises"],
)
def test_what_a_dead_engine_did_not_answer_is_answered_elsewhere(script: Script) -> None:
    totals, call = PoolTotals(1)[0], moving_call()
    with pytest.raises(Moved):
        ask(gate_around(script, totals=totals, is_dead=lambda: True), CHAT, HELLO, call=call)
    assert call.is_moved
    assert totals.requests() == {}


def test_without_another_worker_a_dead_engine_is_a_503() -> None:
    gate = gate_around(Script(500, {"error": {}}), is_dead=lambda: True)
    answer = ask(gate, CHAT, HELLO)
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
