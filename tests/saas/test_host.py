"""How a host is asked: retries, limits, streams, and what becomes of its failures."""

from __future__ import annotations

import asyncio
import email.utils
import logging
import time
from contextlib import aclosing
from typing import Any

import pytest

from gpupool.engines import saas_host
from gpupool.engines.saas_host import Host as Asker
from gpupool.errors import HostError, RequestError
from tests.pool import free_port, wait_until
from tests.saas.asking import BODY, CHAT, asking, events
from tests.saas.host import KEY, Host, Planned

HELLO = "w0 w1 w2 "


pytestmark = pytest.mark.usefixtures("short_pauses")


async def ask(asker: Asker) -> str:
    reply = await asker.ask(CHAT, BODY)
    return str(reply.content["choices"][0]["message"]["content"])


async def read(asker: Asker, **more: Any) -> str:
    parts = [event["choices"][0]["delta"].get("content") or "" async for event in events(asker)]
    return "".join(parts)


def failure(host: Host, *words: str, key: str = KEY, work: Any = ask) -> RequestError:
    with pytest.raises(RequestError) as failed:
        asking(host, work, *words, key=key)
    return failed.value


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
@pytest.mark.parametrize("work", [ask, read])
def test_what_may_pass_is_asked_again(host: Host, status: int, work: Any) -> None:
    host.plan(Planned(status), Planned(status))
    assert asking(host, work) == HELLO
    assert len(host.asked) == 3


@pytest.mark.parametrize("status", [301, 400, 401, 402, 403, 404, 405, 413, 422])
@pytest.mark.parametrize("work", [ask, read])
def test_what_will_not_pass_is_asked_once(host: Host, status: int, work: Any) -> None:
    host.plan(Planned(status))
    failure(host, work=work)
    assert len(host.asked) == 1


def test_no_more_tries_than_were_asked_for(host: Host) -> None:
    host.plan(*[Planned(500)] * 5)
    failure(host, "--saas.max_retries", "3")
    assert len(host.asked) == 4
    failure(host, "--saas.max_retries", "0")
    assert len(host.asked) == 5


def test_a_connection_that_breaks_is_asked_again(host: Host) -> None:
    host.plan(Planned(num_events=0))
    assert asking(host, read) == HELLO
    assert len(host.asked) == 2


def test_an_address_without_a_host_is_an_error(host: Host) -> None:
    host.url = f"http://127.0.0.1:{free_port()}/v1"
    error = failure(host)
    assert (error.status, error.type, error.code) == (502, "host_error", "host_failed")


def test_pauses_grow_and_differ(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saas_host, "FIRST_PAUSE_S", 0.1)
    host.plan(*[Planned(500)] * 3)
    asking(host, ask, "--saas.max_retries", "3")
    times = [asked.at for asked in host.asked]
    pauses = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    for pause, longest in zip(pauses, (0.1, 0.2, 0.4), strict=True):
        assert longest / 2 <= pause < longest + 0.1


def test_the_host_says_after_how_many_seconds_it_is_asked_again(host: Host) -> None:
    host.plan(Planned(429, headers={"Retry-After": "0.7"}))
    asking(host, ask)
    first, second = host.asked
    assert 0.7 <= second.at - first.at < 3


def test_the_host_says_at_what_time_it_is_asked_again(host: Host) -> None:
    when = int(time.time()) + 2
    host.plan(Planned(503, headers={"Retry-After": email.utils.formatdate(when, usegmt=True)}))
    asking(host, ask)
    assert when <= time.time() < when + 2


def test_with_patience_a_full_host_is_asked_until_it_has_room(host: Host) -> None:
    host.plan(*[Planned(429)] * 6)

    async def work(asker: Asker) -> Any:
        return (await asker.ask(CHAT, BODY, patience_s=20)).content["model"]

    assert asking(host, work, "--saas.max_retries", "1")
    assert len(host.asked) == 7
    host.plan(*[Planned(500)] * 6)
    with pytest.raises(HostError):
        asking(host, work, "--saas.max_retries", "1")
    assert len(host.asked) == 9


def test_patience_ends(host: Host) -> None:
    host.plan(*[Planned(503, headers={"Retry-After": "0.1"})] * 99)
    began = time.monotonic()

    async def work(asker: Asker) -> Any:
        return await asker.ask(CHAT, BODY, patience_s=0.5)

    failure(host, "--saas.max_retries", "1", work=work)
    assert 0.2 < time.monotonic() - began < 3
    assert 3 <= len(host.asked) <= 7


def test_who_has_to_wait_long_is_told_so_at_once(host: Host) -> None:
    host.plan(Planned(429, headers={"Retry-After": "300", "x-ratelimit-limit-requests": "10"}))
    error = failure(host)
    assert len(host.asked) == 1
    assert (error.status, error.code, error.retry_after_s) == (429, "host_rate_limit", 300)
    assert error.headers == {"x-ratelimit-limit-requests": "10"}


@pytest.mark.parametrize(
    ("status", "ours", "code"),
    [
        (429, 429, "host_rate_limit"),
        (503, 503, "host_unavailable"),
        (529, 503, "host_unavailable"),
        (500, 502, "host_failed"),
        (401, 502, "host_key_refused"),
        (403, 502, "host_key_refused"),
        (404, 502, "host_not_found"),
        (302, 502, "host_failed"),
    ],
)
def test_the_table_of_errors(host: Host, status: int, ours: int, code: str) -> None:
    host.plan(Planned(status, {"error": {"message": "its own words"}}))
    error = failure(host, "--saas.max_retries", "0")
    assert (error.status, error.code) == (ours, code)
    assert "its own words" not in str(error)
    assert (error.retry_after_s is not None) == (ours in (429, 503))


def test_a_fault_of_the_client_is_told_in_the_hosts_words(host: Host) -> None:
    told = {"message": "temperature is too high", "param": "temperature", "code": "too_high"}
    host.plan(Planned(400, {"error": told}))
    error = failure(host)
    assert (error.status, error.param, error.code) == (400, "temperature", "too_high")
    assert "temperature is too high" in str(error)


def test_a_context_that_is_too_long_has_its_code(host: Host) -> None:
    host.plan(Planned(400, {"error": {"message": "maximum context length is 5", "code": 400}}))
    assert failure(host).code == "context_length_exceeded"


def test_an_error_that_comes_as_a_success_is_one(host: Host) -> None:
    host.plan(Planned(200, {"error": {"message": "no", "code": 402}}))
    assert failure(host).status == 502


@pytest.mark.parametrize("body", [b"{wrong", b"[1]", b""])
def test_an_answer_that_is_none_is_not_asked_for_again(host: Host, body: bytes) -> None:
    host.plan(Planned(200, body))
    error = failure(host)
    assert (error.status, error.code, len(host.asked)) == (502, "host_failed", 1)


@pytest.mark.parametrize("work", [ask, read])
def test_a_host_that_hangs_is_told_and_its_connection_is_closed(host: Host, work: Any) -> None:
    host.plan(Planned(delay_s=30))
    error = failure(host, "--saas.timeout_s", "0.3", work=work)
    assert (error.status, error.code, len(host.asked)) == (502, "host_timeout", 1)
    wait_until(lambda: host.num_left == 1, 2, "the host's client left")


def test_a_stream_that_falls_silent_is_told(host: Host) -> None:
    host.token_s = 30
    assert failure(host, "--saas.timeout_s", "0.3", work=read).code == "host_timeout"


@pytest.mark.parametrize("is_cut", [True, False], ids=["amid-a-chunk", "cleanly"])
def test_a_stream_that_breaks_is_never_begun_again(host: Host, is_cut: bool) -> None:
    host.plan(Planned(num_events=2, is_cut=is_cut))
    found: list[Any] = []

    async def work(asker: Asker) -> None:
        async for event in events(asker):
            found.append(event)

    with pytest.raises(HostError):
        asking(host, work)
    assert len(found) == 2
    assert len(host.asked) == 1


def test_characters_that_are_like_line_breaks_pass(host: Host) -> None:
    host.word = "a\u2028b\x85c\u2029\r\n\x0b"
    assert asking(host, read) == "".join(f"{host.word}{number} " for number in range(3))


def test_a_stream_of_several_choices_has_them_all(host: Host) -> None:
    async def work(asker: Asker) -> list[int]:
        return [event["choices"][0]["index"] async for event in events(asker, n=3)]

    assert asking(host, work) == [0, 1, 2] * 4


def test_a_stream_that_is_left_closes_the_hosts_connection(host: Host) -> None:
    host.num_tokens, host.token_s = 1000, 0.01

    async def work(asker: Asker) -> None:
        async with aclosing(events(asker)) as found:
            async for _ in found:
                break
        began = time.monotonic()
        while not host.num_left and time.monotonic() < began + 2:
            await asyncio.sleep(0.005)
        assert time.monotonic() - began < 0.5

    asking(host, work)
    assert host.num_left == 1


def test_no_more_are_asked_at_a_time_than_were_allowed(host: Host) -> None:
    host.plan(*[Planned(delay_s=0.1)] * 6)
    most = 0

    async def work(asker: Asker) -> None:
        nonlocal most
        asked = [asyncio.ensure_future(ask(asker)) for _ in range(6)]
        while not all(task.done() for task in asked):
            most = max(most, host.num_open)
            await asyncio.sleep(0.005)

    asking(host, work, "--saas.max_parallel", "2")
    assert most == 2
    assert len(host.asked) == 6


def test_limits_of_the_host_are_told_and_nothing_else(host: Host) -> None:
    headers = {"X-RateLimit-Remaining-Tokens": "9", "X-Secret": "1", "Set-Cookie": "a=b"}
    host.plan(Planned(headers={**headers, "x-ratelimit-owner": KEY}))

    async def work(asker: Asker) -> Any:
        return (await asker.ask(CHAT, BODY)).headers

    assert asking(host, work) == {"x-ratelimit-remaining-tokens": "9"}


@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_a_key_that_the_host_echoes_is_told_to_nobody(
    host: Host, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told = {"message": f"bad {KEY}", "param": KEY, "code": KEY}
    host.plan(Planned(status, {"error": told}, {"x-ratelimit-who": KEY}))
    error = failure(host, "--saas.max_retries", "0")
    assert KEY not in f"{error} {vars(error)} {caplog.text}"


def test_the_key_and_more_headers_are_sent(host: Host) -> None:
    asking(host, ask, "--saas.extra_headers", '{"X-Team": "a"}')
    assert host.asked[0].key == KEY
    assert host.asked[0].headers["X-Team"] == "a"
