"""Hosts that litellm speaks to. The vendors' real addresses are never asked: each is told that its
address is a server of the test's own."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from gpupool.engines.saas_args import EXTRA, parse_engine_args
from gpupool.engines.saas_client import Client
from gpupool.engines.saas_errors import HostBroken, HostRefused, HostSilent
from gpupool.engines.saas_fields import COMPLETIONS, EMBEDDINGS
from gpupool.engines.saas_vendor import VendorClient, check_vendor, find_vendor, import_litellm
from gpupool.errors import BadRequest, ConfigError
from tests.saas.asking import BODY, CHAT
from tests.saas.host import KEY, Host, Planned
from tests.saas.raw_host import raw_host

pytestmark = [
    pytest.mark.server,
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore"),  # litellm's own
]

T = TypeVar("T")
TEXT = "w0 w1 w2 "


def asking(host: Host, work: Callable[[Client], Awaitable[T]], *words: str, key: str = KEY) -> T:
    async def run() -> T:
        given = ("--saas.api_type", "hosted_vllm", "--saas.base_url", host.url, *words)
        return await work(VendorClient(parse_engine_args(given), "far-away", key))

    return asyncio.run(run())


async def chat(client: Client, **more: Any) -> Any:
    return (await client.ask(CHAT, BODY | more)).content


async def stream(client: Client, path: str = CHAT, **more: Any) -> list[Any]:
    async with client.stream(path, BODY | {"stream": True} | more) as found:
        return [event async for event in found.events]


def test_litellm_takes_all_that_requests_are_given() -> None:
    litellm = import_litellm()
    from litellm.types.utils import all_litellm_params

    known = set(inspect.signature(litellm.acompletion).parameters) | set(all_litellm_params)
    theirs_by_vendor = {
        "additional_drop_params", "aws_profile_name", "aws_region_name", "aws_role_name",
        "aws_session_name", "drop_params", "extra_body", "organization", "vertex_location",
        "vertex_project",
    }  # fmt: skip
    assert known | theirs_by_vendor >= EXTRA


def test_litellm_is_silent_and_fetches_nothing() -> None:
    litellm = import_litellm()
    assert litellm.callbacks == litellm.success_callback == litellm.failure_callback == []
    assert not litellm.telemetry
    assert os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"
    assert os.environ["LITELLM_OFFLINE_MODE"] == "true"


def test_nothing_but_a_vendor_imports_litellm() -> None:
    code = "import sys, gpupool.engines.saas, saas_url_m; print('litellm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


ASKS = """
import asyncio, json, sys
seen = set()
places = {"socket.connect": 1, "socket.getaddrinfo": 0}
sys.addaudithook(lambda name, args: name in places and seen.add(str(args[places[name]])))
from gpupool.engines.saas_args import parse_engine_args
from gpupool.engines.saas_vendor import VendorClient

async def ask():
    words = ["--saas.api_type", "hosted_vllm", "--saas.base_url", sys.argv[1]]
    client = VendorClient(parse_engine_args(words), "m", "sk-0123456789")
    for path, body in json.loads(sys.argv[2]):
        try:
            if body.get("stream"):
                async with client.stream(path, body) as found:
                    async for _ in found.events: pass
            else:
                await client.ask(path, body)
        except Exception as error:
            print(type(error).__name__, file=sys.stderr)

asyncio.run(ask())
print(json.dumps(sorted(seen)))
"""


def test_nobody_but_the_host_is_asked(host: Host) -> None:
    host.key = "sk-0123456789"
    bodies = [
        (CHAT, BODY),
        (CHAT, BODY | {"stream": True}),
        (COMPLETIONS, {"prompt": "a"}),
        (EMBEDDINGS, {"input": "a"}),
    ]
    env = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "False", "LITELLM_OFFLINE_MODE": "false"}
    command = [sys.executable, "-c", ASKS, host.url, json.dumps(bodies)]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    assert len(host.asked) == 4
    assert {"127.0.0.1" in seen for seen in json.loads(done.stdout)} == {True}


@pytest.mark.parametrize(
    ("words", "model", "found"),
    [
        ((), "anthropic/claude", ("anthropic", "claude")),
        ((), "openrouter/a/b", ("openrouter", "a/b")),
        (("--saas.api_type", "azure"), "dep", ("azure", "dep")),
        (("--saas.api_type", "azure"), "azure/dep", ("azure", "dep")),
    ],
)
def test_the_vendor_is_said_or_named_by_the_model(
    words: tuple[str, ...], model: str, found: tuple[str, str]
) -> None:
    assert find_vendor(parse_engine_args(words), model) == found


@pytest.mark.parametrize(
    ("words", "model", "says"),
    [
        ((), "Qwen/Qwen2.5", "names no host"),
        ((), "m", "names no host"),
        (("--saas.api_type", "antropic"), "m", "did you mean 'anthropic'"),
    ],
)
def test_a_vendor_that_nobody_knows_is_refused(
    words: tuple[str, ...], model: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        find_vendor(parse_engine_args(words), model)


def test_a_vendor_without_its_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    args = parse_engine_args([])
    with pytest.raises(ConfigError, match="set ANTHROPIC_API_KEY, or put it into a file"):
        check_vendor(args, "anthropic/claude", None)
    check_vendor(args, "anthropic/claude", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    check_vendor(args, "anthropic/claude", None)


def test_a_chat(host: Host) -> None:
    found = asking(host, lambda client: chat(client, n=2, seed=3, top_k=5, metadata={"a": "b"}))
    assert [choice["message"]["content"] for choice in found["choices"]] == [TEXT, TEXT]
    assert found["usage"]["total_tokens"] == 10
    [asked] = host.asked
    assert asked.key == KEY
    assert (asked.body["seed"], asked.body["top_k"], asked.body["n"]) == (3, 5, 2)
    assert "metadata" not in asked.body


def test_a_stream(host: Host) -> None:
    events = asking(host, lambda client: stream(client, stream_options={"include_usage": True}))
    *pieces, last = events
    told = [piece["choices"][0]["delta"].get("content") or "" for piece in pieces]
    assert "".join(told) == TEXT
    assert pieces[-1]["choices"][0]["finish_reason"] == "stop"
    assert last["usage"]["total_tokens"] == 10


def test_a_stream_of_several_choices_is_refused(host: Host) -> None:
    with pytest.raises(BadRequest, match="in whole answers, not in streams"):
        asking(host, lambda client: stream(client, n=2))


def test_a_stream_that_breaks_does_not_look_whole(host: Host) -> None:
    host.plan(Planned(num_events=2, is_cut=False))
    with pytest.raises(HostBroken):
        asking(host, stream)


def test_a_completion_is_a_chat_there(host: Host) -> None:
    async def work(client: Client) -> Any:
        whole = await client.ask(COMPLETIONS, {"prompt": "a", "max_tokens": 5})
        async with client.stream(COMPLETIONS, {"prompt": "a", "stream": True}) as found:
            return whole.content, [event async for event in found.events]

    whole, events = asking(host, work)
    assert whole["choices"] == [
        {"index": 0, "finish_reason": "stop", "text": TEXT, "logprobs": None}
    ]
    assert "".join(event["choices"][0]["text"] for event in events if event["choices"]) == TEXT
    assert [asked.path for asked in host.asked] == ["/v1/chat/completions"] * 2


def test_vectors_come_from_the_same_address(host: Host) -> None:
    async def work(client: Client) -> Any:
        return (await client.ask(EMBEDDINGS, {"input": ["a", "b"]})).content

    found = asking(host, work)
    assert [item["embedding"] for item in found["data"]] == [[0.6, 0.8]] * 2
    assert [asked.path for asked in host.asked] == ["/v1/embeddings"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 429, 500, 503])
def test_an_error_keeps_its_status_headers_and_words(host: Host, status: int) -> None:
    told = {"error": {"message": "its own words", "type": "x"}}
    host.plan(Planned(status, told, {"Retry-After": "7", "x-ratelimit-a": "1"}))
    with pytest.raises(HostRefused) as failed:
        asking(host, chat)
    assert failed.value.status == status
    assert failed.value.headers["retry-after"] == "7"
    assert failed.value.headers["x-ratelimit-a"] == "1"
    assert failed.value.content["error"]["message"].startswith("its own words")
    assert len(host.asked) == 1


def test_limits_are_told(host: Host) -> None:
    host.plan(Planned(headers={"x-ratelimit-remaining-requests": "5"}))

    async def work(client: Client) -> Any:
        return (await client.ask(CHAT, BODY)).headers

    assert asking(host, work)["x-ratelimit-remaining-requests"] == "5"


def test_a_parameter_that_a_vendor_lacks_is_the_clients_fault(host: Host) -> None:
    args = parse_engine_args(["--saas.api_type=anthropic", "--saas.base_url", host.url])
    with pytest.raises(HostRefused) as failed:
        asyncio.run(VendorClient(args, "claude", KEY).ask(CHAT, BODY | {"seed": 3}))
    assert failed.value.status == 400
    told = failed.value.content["error"]["message"]
    assert "seed" in told
    assert "litellm" not in told
    assert not host.asked


def test_a_vendor_that_hangs_is_silent(host: Host) -> None:
    host.plan(Planned(delay_s=30))
    with pytest.raises(HostSilent):
        asking(host, chat, "--saas.timeout_s", "0.5")


def test_what_is_cancelled_closes_the_connection(host: Host) -> None:
    host.num_tokens, host.token_s = 1000, 0.01
    host.plan(Planned(delay_s=30))

    async def work(client: Client) -> None:
        for ask in (chat, stream):
            num_left = host.num_left
            asked = asyncio.ensure_future(ask(client))
            while not host.num_open:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            async with asyncio.timeout(2):
                while host.num_left == num_left:
                    await asyncio.sleep(0.01)

    asking(host, work)
    assert host.num_left == 2


@pytest.mark.parametrize("status", [400, 401, 500])
def test_a_key_that_is_echoed_is_printed_by_nobody(
    host: Host, status: int, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(10)
    host.plan(Planned(status, {"error": {"message": f"bad {KEY}"}}))
    with pytest.raises(HostRefused):
        asking(host, chat)
    out, err = capfd.readouterr()
    assert KEY not in out + err + caplog.text


@pytest.mark.parametrize("vendor", ["anthropic", "gemini", "hosted_vllm"])
def test_a_host_that_sends_elsewhere_takes_nobody_there(vendor: str) -> None:
    """The keys of some are in headers of their own, which would go along."""

    async def run(url: str) -> None:
        given = ("--saas.api_type", vendor, "--saas.base_url", url)
        await chat(VendorClient(parse_engine_args(given), "far-away", KEY))

    with raw_host(b"HTTP/1.1 400 X\r\nContent-Length: 0\r\n\r\n") as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost").encode()
        head = b"HTTP/1.1 307 X\r\nContent-Length: 0\r\nLocation: " + elsewhere
        with raw_host(head + b"\r\n\r\n") as host, pytest.raises((HostRefused, HostBroken)):
            asyncio.run(run(host.url))
        assert host.heads
        assert other.heads == []
