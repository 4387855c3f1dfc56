"""One pool of each real engine, for all tests that leave it as they found it.

An engine takes longer to load than most of its tests to run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest

from tests.pool import ROOT, Pool
from tests.ray_pool.cluster import environment, own_network, require_ray
from tests.server.engines import MODEL, engine_pool

ENGINE_ARGS = {
    "vllm": ("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    "transformers": (),
    "llama_cpp": ("--chat-template-file", str(ROOT / "tests" / "chat_with_tools.jinja")),
}


@pytest.fixture(scope="module", name="pool_of")
def _pool_of(
    shared_pool: Callable[[str], Pool], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Pool]]:
    """The same by a name that may end in -ray. One on Ray is the module's: it lives in a network
    of its own, in which this thread cannot reach the others, so nothing else is asked meanwhile."""
    with ExitStack() as stack:

        def find(name: str) -> Pool:
            engine = name.removesuffix("-ray")
            if engine == name:
                return shared_pool(name)
            require_ray()
            stack.enter_context(own_network())
            pool = engine_pool(
                engine,
                tmp_path_factory.mktemp(name),
                "--launcher",
                "ray",
                "--served_model_name",
                MODEL,
                env=environment(),
                engine_args=ENGINE_ARGS[engine],
            )
            return stack.enter_context(pool)

        yield find


@pytest.fixture(scope="session", name="shared_pool")
def _shared_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Pool]]:
    """The pool of an engine, by the engine's name; started when it is asked for first."""
    with ExitStack() as stack:

        @cache
        def start(engine: str) -> Pool:
            pool = engine_pool(
                engine,
                tmp_path_factory.mktemp(engine),
                "--served_model_name",
                MODEL,
                engine_args=ENGINE_ARGS[engine],
            )
            return stack.enter_context(pool)

        yield start
