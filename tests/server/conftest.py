"""One pool of each real engine, for all tests that leave it as they found it.

An engine takes longer to load than most of its tests to run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest

from tests.pool import ROOT, Pool
from tests.server.engines import MODEL, engine_pool

ENGINE_ARGS = {
    "vllm": ("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    "transformers": (),
    "llama_cpp": ("--chat-template-file", str(ROOT / "tests" / "chat_with_tools.jinja")),
}


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
