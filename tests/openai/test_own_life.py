"""What becomes of a request whose client leaves, whose engine fails, or who is one of many."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from gpupool.api.openai.own.runner import Bell, Running
from gpupool.call import Call, answering
from gpupool.engines.base import Chunk, Failed, SamplingParams, Sink
from gpupool.errors import BadRequest, EngineDead, Moved
from gpupool.exchange import Message
from tests.engines.talker import Talker
from tests.openai.own import Api, serving
from tests.pool import wait_until

PATH = "/v1/completions"
LONG = {"prompt": "ab", "max_tokens": 900, "stream": True}


class Client:
    """One request straight to the gate, whose client can leave."""

    def __init__(self, api: Api, **body: Any) -> None:
        self._api = api
        self._body = json.dumps(body).encode()
        self.sent: list[Message] = []
        self.has_token = threading.Event()
        self.gone = asyncio.Event()

    async def run(self, call: Call | None = None) -> None:
        scope = {
            "type": "http",
            "method": "POST",
            "path": PATH,
            "raw_path": PATH.encode(),
            "headers": [(b"content-type", b"application/json")],
            "state": {},
        }
        with answering(call or Call()):
            await self._api.front.gate(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if self._body:
            body, self._body = self._body, b""
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body":
            self.has_token.set()

    def answer(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


def tasks_of(api: Api) -> int:
    async def count() -> int:
        return len(asyncio.all_tasks()) - 1

    return int(api.run(count()))


@pytest.mark.parametrize("way", ["leaves", "is cancelled"])
def test_nothing_is_left_of_a_client_that_goes(way: str) -> None:
    with serving() as api:
        client = Client(api, **{**LONG, "n": 3})
        running = api.front._spawn(client.run())
        assert client.has_token.wait(10)
        if way == "leaves":
            api.front._thread._loop.call_soon_threadsafe(client.gone.set)  # type: ignore[union-attr]
        else:
            running.cancel()
        wait_until(lambda: api.engine.num_inflight() == 0, 5, "an empty engine")
        wait_until(lambda: tasks_of(api) == 0, 5, "a loop without tasks")
        assert len(api.engine.cancelled) == 3


def test_error_before_the_answer_is_its_status(api: Api) -> None:
    response = api.send(PATH, {"prompt": "!", "stream": True})
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "this one fails"


def test_one_failure_ends_the_others_of_its_request(api: Api) -> None:
    response = api.send(PATH, {"prompt": ["ab", "cd", "!"], "max_tokens": 900})
    assert response.status_code == 500
    wait_until(lambda: api.engine.num_inflight() == 0, 5, "an empty engine")


def test_grammar_that_is_refused_is_400_also_of_a_stream() -> None:
    """As an engine that compiles it on a thread of its own refuses it."""

    class Refusing(Talker):
        def generate(
            self, request_id: str, prompt: Any, params: SamplingParams, sink: Sink
        ) -> None:
            error = BadRequest("this regex cannot be compiled")
            threading.Timer(0.01, sink, (Failed(error),)).start()

    with serving(engine_class=Refusing) as api:
        body = {"prompt": "a", "structured_outputs": {"regex": "("}, "stream": True}
        assert api.send(PATH, body).status_code == 400


def test_engine_that_dies_within_an_answer_ends_it_with_an_error() -> None:
    with serving() as api:
        *_, last = api.events(PATH, prompt="†ab", max_tokens=9)
        assert json.loads(last)["error"]["type"] == "unavailable_error"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_request_of_a_dead_engine_moves_if_nothing_was_answered(stream: bool) -> None:
    with serving() as api:
        client = Client(api, prompt="‡ab", max_tokens=9, stream=stream)
        call = Call(copy_request=lambda: None)  # type: ignore[arg-type, return-value]
        with pytest.raises(Moved):
            api.run(client.run(call))
        assert not client.sent
        assert call.is_moved


def test_death_is_known_from_the_answer_before_the_engine_tells_it() -> None:
    class Silent(Talker):
        def generate(
            self, request_id: str, prompt: Any, params: SamplingParams, sink: Sink
        ) -> None:
            sink(Failed(EngineDead("gone")))

    with serving(engine_class=Silent) as api:
        assert api.engine.dead_reason is None
        call = Call(copy_request=lambda: None)  # type: ignore[arg-type, return-value]
        with pytest.raises(Moved):
            api.run(Client(api, prompt="a").run(call))


def test_events_that_come_together_wake_the_loop_once(api: Api) -> None:
    async def count() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        wakes = []
        wake = loop.call_soon_threadsafe

        def counting(*args: Any) -> asyncio.Handle:
            wakes.append(args)
            return wake(*args)

        loop.call_soon_threadsafe = counting  # type: ignore[assignment, method-assign]
        bell = Bell(loop)
        several = [Running(api.engine, bell, ()) for _ in range(10)]

        def ring() -> None:
            for running in several * 10:
                bell.ring(running, 0, Chunk("a", (97,)))

        ringing = threading.Thread(target=ring)
        ringing.start()
        ringing.join()  # The loop stands still meanwhile, as it does while it writes.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return sum(len(running._events) for running in several), len(wakes)

    assert asyncio.run(count()) == (100, 1)


def test_long_list_holds_no_more_than_the_engines_slots() -> None:
    with serving("--slots", "2", "--token-s", "0.01") as api:
        running = api.front._spawn(Client(api, prompt=["a"] * 6, max_tokens=20).run())
        wait_until(lambda: api.engine.num_inflight() > 0, 5, "a running sequence")
        assert api.engine.num_inflight() == 2
        running.result(20)


def test_closed_front_leaves_no_thread() -> None:
    before = {thread.ident for thread in threading.enumerate()}
    with serving() as api:
        api.ask(PATH, prompt="a")
    wait_until(
        lambda: (
            not [
                thread
                for thread in threading.enumerate()
                if thread.ident not in before and thread.name.startswith("openai")
            ]
        ),
        5,
        "the end of all threads",
    )


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_tokens_are_counted(api: Api, stream: bool) -> None:
    before = (api.totals.prompt_tokens, api.totals.generated_tokens)
    api.send(PATH, {"prompt": "abc", "max_tokens": 5, "stream": stream})
    counted = (api.totals.prompt_tokens - before[0], api.totals.generated_tokens - before[1])
    assert counted == (3, 5)
