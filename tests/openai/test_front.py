"""Whose application answers: the engine's, or the pool's own for what it leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import pytest

from gpupool.engines.base import OpenAI, SpeaksOpenAI
from gpupool.errors import EngineDead
from gpupool.exchange import Message, Receive, Send
from gpupool.front import LoopThread
from tests.engines.talker import Talker
from tests.openai.own import Api, serving

PATH = "/v1/completions"


class Speaking(Talker):
    """Has an application that always answers the same, and leaves echoes."""

    loop: LoopThread

    def openai(self) -> OpenAI:
        self.loop = LoopThread("speaking")
        fields = {PATH: frozenset({"prompt", "echo", "max_tokens"})}
        return OpenAI(self._answer, fields, leaves=self._leaves)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'{"by": "the engine"}'})

    def _leaves(self, path: str, body: Mapping[str, Any]) -> bool:
        return path == PATH and bool(body.get("echo"))

    def spawn(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return self.loop.spawn(work)

    def is_lost(self) -> bool:
        return False

    def die(self) -> None:
        super().die()
        self.loop.close()


@pytest.fixture(name="speaking")
def _speaking() -> Iterator[Api]:
    with serving(engine_class=Speaking) as api:
        assert isinstance(api.engine, SpeaksOpenAI)
        yield api


def test_engine_with_an_application_answers_by_it(speaking: Api) -> None:
    assert speaking.ask(PATH, prompt="ab", max_tokens=2) == {"by": "the engine"}


def test_what_it_leaves_the_pools_own_answers(speaking: Api) -> None:
    answer = speaking.ask(PATH, prompt="ab", max_tokens=2, echo=True)
    assert answer["choices"][0]["text"] == "abab"


def test_body_has_no_name_that_the_engine_does_not_know(speaking: Api) -> None:
    assert speaking.refused(PATH, prompt="ab", seed=1)["param"] == "seed"


def test_closed_loop_says_that_the_engine_is_gone() -> None:
    loop = LoopThread("closing")
    loop.close()

    async def nothing() -> None:
        raise AssertionError("it runs")

    with pytest.raises(EngineDead):
        loop.spawn(nothing())


def test_loop_that_is_closed_ends_what_runs() -> None:
    loop = LoopThread("closing")
    running = loop.spawn(asyncio.sleep(60))
    loop.close()
    assert running.cancelled()
