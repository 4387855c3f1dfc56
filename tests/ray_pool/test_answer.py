"""A replica's answers, without Ray: the application and the gate behind an ASGI server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from gpupool.access import AccessLog
from gpupool.app import create_app
from gpupool.engines.base import Report
from gpupool.errors import EngineDead
from gpupool.exchange import Message
from gpupool.front import Front
from gpupool.partition import Slice
from gpupool.ray_pool.answer import Answerer
from gpupool.ray_pool.flask_call import environ_of
from gpupool.ray_pool.piece import Piece, PieceResult
from gpupool.ray_pool.spread import Spread
from gpupool.replica import Replica
from gpupool.settings import Settings
from tests.engines.dies_on_demand import DiesOnDemand
from tests.pool import wait_until

LONG = {"max_tokens": 900}
HEADERS = [(b"host", b"x"), (b"content-type", b"application/json")]


async def nobody(piece: Piece) -> PieceResult:
    raise AssertionError("one replica alone")


class Site:
    """What a replica has, less what makes it one of Ray's."""

    def __init__(self) -> None:
        settings = Settings(model_name="M", engine_args=("--token-s", "0.005"))

        def boot(gpu_slice: Slice, settings: Settings, report: Report) -> DiesOnDemand:
            engine = DiesOnDemand(settings, gpu_slice)
            engine.load(report)
            return engine

        app = create_app(boot)
        replica: Replica = app.extensions["gpupool"]
        spread = Spread(replica, nobody, 1)
        app.extensions["gpupool.fanout"] = spread
        replica.load(Slice(0, (), ()), settings)
        assert replica.engine is not None
        self.engine = replica.engine
        totals = app.extensions["gpupool.totals"]
        replica.front = Front(replica.engine, settings, replica.keys, totals, access=AccessLog())
        self.replica, self.front = replica, replica.front
        threads = ThreadPoolExecutor(8)
        host = SimpleNamespace(
            app=app, replica=replica, spread=spread, threads=threads, control_threads=threads
        )
        self.answerer = Answerer(host)  # type: ignore[arg-type]

    def close(self) -> None:
        self.front.close()
        self.replica.close()


@pytest.fixture(name="site")
def _site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


class Client:
    """One request; what it was sent."""

    def __init__(self, site: Site, path: str, body: Any) -> None:
        self._answerer = site.answerer
        self._body: bytes | None = json.dumps(body).encode()
        self.scope = scope(path)
        self.gone = asyncio.Event()
        self.messages: list[Message] = []

    async def ask(self) -> Client:
        await self._answerer(self.scope, self._receive, self._send)
        return self

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.messages[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages[1:])


def scope(path: str, *headers: tuple[bytes, bytes]) -> Message:
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "http_version": "1.1",
        "headers": [*HEADERS, *headers],
    }


def completion(**more: Any) -> dict[str, Any]:
    return {"model": "M", "prompt": "ab", "max_tokens": 4, **more}


def test_infer_and_completions_answer(site: Site) -> None:
    async def run() -> None:
        found = await Client(site, "/infer", {"instances": ["ab"], "params": LONG}).ask()
        assert json.loads(found.body) == ["ab" * 450]
        found = await Client(site, "/v1/completions", completion()).ask()
        assert json.loads(found.body)["choices"][0]["text"] == "abab"

    asyncio.run(run())


@pytest.mark.parametrize("is_cancelled", [True, False], ids=["task", "message"])
@pytest.mark.parametrize("path", ["/infer", "/v1/completions"])
def test_a_client_that_leaves_ends_its_work_and_no_thread_stays(
    site: Site, path: str, is_cancelled: bool
) -> None:
    """Serve cancels the task of a client that left, other servers send the message alone."""
    body = completion(stream=True, **LONG)
    if path == "/infer":
        body = {"instances": ["ab"], "params": LONG}

    async def leave() -> None:
        client = Client(site, path, body)
        asking = asyncio.create_task(client.ask())
        while not site.engine.num_inflight():
            await asyncio.sleep(0.01)
        if is_cancelled:
            asking.cancel()
        else:
            client.gone.set()
        await asyncio.wait((asking,), timeout=2)
        assert asking.done()
        for _ in range(100):
            if not site.engine.num_inflight():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the engine works on")

    async def run() -> None:
        await leave()
        before = threading.active_count()
        for _ in range(12):  # more than there are handler threads
            await leave()
        assert threading.active_count() <= before + 7

    asyncio.run(run())


def test_a_slow_client_holds_back_its_stream_and_no_other(site: Site) -> None:
    async def run() -> None:
        slow, taken = Client(site, "/v1/completions", completion(stream=True, **LONG)), 0
        may_go_on = asyncio.Event()

        async def send(message: Message) -> None:
            nonlocal taken
            taken += 1
            if taken > 3:
                await may_go_on.wait()

        slow._send = send  # type: ignore[method-assign]
        asking = asyncio.create_task(slow.ask())
        found = await Client(site, "/v1/completions", completion(max_tokens=50)).ask()
        assert found.messages[0]["status"] == 200
        assert taken == 4
        may_go_on.set()
        slow.gone.set()
        await asking

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/infer", {"instances": ["die"], "params": LONG}),
        ("/v1/completions", completion(prompt="die")),
    ],
)
def test_a_request_whose_engine_dies_is_for_another_replica(
    site: Site, path: str, body: Any
) -> None:
    async def run() -> None:
        client = await Client(site, path, body).ask()
        assert client.messages[0]["status"] == 503
        assert b"x-gpupool-moved" in client.headers

    asyncio.run(run())
    wait_until(lambda: site.engine.dead_reason, 2, "a dead engine")


@pytest.mark.parametrize(
    ("path", "body"),
    [("/infer", {"instances": ["ab"]}), ("/v1/completions", completion())],
    ids=["infer", "completions"],
)
def test_a_request_that_comes_to_a_failed_replica_is_for_another(
    site: Site, path: str, body: Any
) -> None:
    site.replica.fail(EngineDead("gone"))

    async def run() -> None:
        client = await Client(site, path, body).ask()
        assert client.messages[0]["status"] == 503
        assert b"x-gpupool-moved" in client.headers

    asyncio.run(run())


def test_a_header_with_an_underscore_is_no_other_header() -> None:
    environ = environ_of(scope("/a", (b"x_api_key", b"k"), (b"x-request-id", b"1")), b"")
    assert "HTTP_X_API_KEY" not in environ
    assert environ["HTTP_X_REQUEST_ID"] == "1"


def test_a_path_is_what_it_is() -> None:
    environ = environ_of(scope("/\u00e4 b") | {"query_string": b"a=1"}, b"xyz")
    assert environ["PATH_INFO"].encode("latin-1").decode() == "/\u00e4 b"
    assert (environ["QUERY_STRING"], environ["CONTENT_LENGTH"]) == ("a=1", "3")
