"""Hosts that are broken, or mean harm: what they send is an error of one request, and no more."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
from typing import Any

import pytest

from gpupool.engines import saas_body, saas_check, saas_client
from gpupool.engines.saas_args import parse_engine_args
from gpupool.engines.saas_check import HostUnreachable, check_address
from gpupool.engines.saas_errors import HostGarbled, HostRefused, retry_after_s
from gpupool.engines.saas_fields import CHAT
from gpupool.engines.saas_generation import MAX_COUNT, completion_of, usage_of
from gpupool.engines.saas_host import Host as Asker
from gpupool.engines.saas_openai import render_strictly
from gpupool.errors import ConfigError, HostError, RequestError
from tests.saas.asking import BODY, asking, events
from tests.saas.host import Host, Planned
from tests.saas.raw_host import JSON_HEAD, STREAM_HEAD, raw_host

STREAM = {"Content-Type": "text/event-stream"}
DEEP = b"[" * 100_000


pytestmark = pytest.mark.usefixtures("short_pauses")


async def ask(asker: Asker) -> Any:
    return (await asker.ask(CHAT, BODY)).content


async def read(asker: Asker) -> list[Any]:
    return [event async for event in events(asker)]


def failure(host: Any, work: Any, *words: str) -> RequestError:
    with pytest.raises(RequestError) as failed:
        asking(host, work, *words)
    return failed.value


def test_brackets_without_end_are_no_answer(host: Host) -> None:
    """json's own parser raises a RecursionError, which is no ValueError."""
    host.plan(Planned(200, DEEP), Planned(400, DEEP), Planned(200, b"data: " + DEEP, STREAM))
    assert [failure(host, work).status for work in (ask, ask, read)] == [502, 400, 502]


@pytest.mark.parametrize("choices", [5, [5], {"a": 1}, [{"index": [1]}], [{"index": "0"}]])
def test_an_event_of_another_shape_is_the_hosts_failure(host: Host, choices: Any) -> None:
    event = b"data: " + json.dumps({"choices": choices}).encode() + b"\n\n"
    host.plan(Planned(200, event, STREAM))
    assert failure(host, read).code == "host_failed"
    assert len(host.asked) == 1


def test_an_error_in_place_of_a_stream_is_told(host: Host) -> None:
    host.plan(Planned(200, {"error": {"message": "its own words", "code": 400}}))
    error = failure(host, read)
    assert (error.status, "its own words" in str(error)) == (400, True)


@pytest.mark.parametrize("kind", ["application/json", "text/html"])
def test_a_host_that_does_not_stream_is_asked_once(host: Host, kind: str) -> None:
    """It has done the work, and bills each."""
    body = b'{"choices": [{"message": {"content": "x"}}]}'
    host.plan(*[Planned(200, body, {"Content-Type": kind})] * 3)
    assert failure(host, read).code == "host_failed"
    assert len(host.asked) == 1


@pytest.mark.parametrize(
    "told", ["1e308", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT", "Fri, 31 Dec 9999 23:59:59 -0000"]
)
def test_an_absurd_time_to_wait_is_a_day_at_most(told: str) -> None:
    found = retry_after_s(HostRefused(429, {"retry-after": told}))
    assert found is None or 0 <= found <= 86_400


@pytest.mark.parametrize(
    "told", ["-5", "nan", "inf", "²", "", "x", "Mon, 01 Jan 0001 00:00:00 -0000", "9" * 5000]
)
def test_a_time_to_wait_that_is_none_is_none(told: str) -> None:
    assert not retry_after_s(HostRefused(429, {"retry-after": told}))


# Slowly.


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n", JSON_HEAD, STREAM_HEAD])
@pytest.mark.parametrize("work", [ask, read])
def test_one_byte_after_the_other_is_no_answer_in_time(head: bytes, work: Any) -> None:
    with raw_host(head, drop=b"x") as host:
        began = time.monotonic()
        assert failure(host, work, "--saas.timeout_s", "0.3").code == "host_timeout"
        assert time.monotonic() - began < 2


def test_a_refusal_does_not_wait_for_its_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saas_client, "ERROR_PATIENCE_S", 0.3)
    with raw_host(b"HTTP/1.1 400 X\r\n\r\n", drop=b"x") as host:
        began = time.monotonic()
        assert failure(host, ask).status == 400
        assert time.monotonic() - began < 2
        assert len(host.heads) == 1


def test_the_first_question_has_its_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saas_check, "PATIENCE_S", 0.3)
    with (
        raw_host(JSON_HEAD, drop=b" ") as host,
        pytest.raises(HostUnreachable, match="no answer from .* within"),
    ):
        check_address(host.url, parse_engine_args([]), "m", None)


# Endlessly.


def bomb(num_bytes: int, *, times: int = 1) -> bytes:
    raw = b'{"choices": [' + b" " * num_bytes
    for _ in range(times):
        raw = gzip.compress(raw)
    return raw


def test_a_compressed_answer_is_read(host: Host) -> None:
    body = gzip.compress(json.dumps({"choices": [], "pad": "x" * 300_000}).encode())
    host.plan(Planned(200, body, {"Content-Encoding": "gzip"}))
    assert len(asking(host, ask)["pad"]) == 300_000
    assert host.asked[0].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip", "br"])
@pytest.mark.parametrize("work", [ask, read])
def test_a_few_bytes_do_not_become_gigabytes(
    host: Host, work: Any, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saas_client, "MAX_ANSWER_BYTES", 1 << 20)
    monkeypatch.setattr(saas_body, "MAX_EVENT_BYTES", 1 << 20)
    body = bomb(100 << 20, times=encoding.count("gzip") or 1)
    kind = {} if work is ask else STREAM
    host.plan(Planned(200, body, {"Content-Encoding": encoding, **kind}))
    tracemalloc.start()
    try:
        assert failure(host, work).code == "host_failed"
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert len(host.asked) == 1


def test_an_answer_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saas_client, "MAX_ANSWER_BYTES", 1 << 20)
    monkeypatch.setattr(saas_body, "MAX_EVENT_BYTES", 1 << 20)
    for work, head in ((ask, JSON_HEAD), (read, STREAM_HEAD)):
        with raw_host(head, drop=b" " * (1 << 18), every_s=0) as host:
            assert failure(host, work).code == "host_failed"
            assert host.num_drops < 80  # 20 MB; the sockets hold some of them


def test_a_long_event_comes_whole(host: Host) -> None:
    event = {"choices": [{"index": 0, "delta": {"content": "y" * (3 << 20)}}]}
    body = b"data: " + json.dumps(event).encode() + b"\n\ndata: [DONE]\n\n"
    host.plan(Planned(200, body, STREAM))
    assert asking(host, read) == [event]


# Numbers.


@pytest.mark.parametrize("odd", [-1, 1.5, float("inf"), MAX_COUNT + 1, 10**400])
def test_what_cannot_have_been_counted_is_left_out(odd: Any) -> None:
    assert usage_of({"usage": {"prompt_tokens": odd, "completion_tokens": 3}}) == {
        "completion_tokens": 3
    }
    choice = {"message": {"content": "x"}}
    found = completion_of({"choices": [choice], "usage": {"prompt_tokens": odd}}, CHAT, False)
    assert found.usage is not None
    assert found.usage.prompt_tokens == 0


@pytest.mark.parametrize("usage", [5, [], "x", None])
def test_a_usage_of_another_shape_is_none(usage: Any) -> None:
    assert usage_of({"usage": usage}) == {}


def test_no_client_is_sent_what_json_has_not() -> None:
    for odd in (float("nan"), float("inf")):
        with pytest.raises(HostError):
            render_strictly({"a": odd})
        content = [{"token": "x", "logprob": odd}]
        choice = {"message": {"content": "x"}, "logprobs": {"content": content}}
        with pytest.raises(HostGarbled):
            completion_of({"choices": [choice]}, CHAT, True)


@pytest.mark.parametrize("name", ["n", "stream", "messages", "model"])
def test_what_decides_how_a_request_is_counted_is_each_requests_own(name: str) -> None:
    with pytest.raises(ConfigError, match=f"extra_body has '{name}'"):
        parse_engine_args(["--saas.extra_body", json.dumps({name: 2})])
