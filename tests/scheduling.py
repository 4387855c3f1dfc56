"""Which tests run in the same process, one after the other, when files run side by side."""

from __future__ import annotations

import re

import pytest
from xdist.scheduler import LoadScopeScheduling

SHARERS = ("test_infer", "test_logprobs", "test_openai", "test_openai_vllm", "test_fuzz")
"""Files whose tests use `shared_pool`: they are cut by engine."""
ENGINE_SHARERS = ("test_transformers", "test_transformers_beside", "test_transformers_guides")
"""Files whose tests use `transformers_client`."""
LONG = ("test_vllm", "test_openai_llama", "test_llama_cpp", "test_transformers_life")
"""Files with a model of their own that take half a minute and more."""
ENGINE = re.compile(r"[\[-](vllm|transformers|llama_cpp)\b")


def scope_of(nodeid: str) -> str:
    """The file, or what it shares with others."""
    path, _, rest = nodeid.partition("::")
    name = path.rpartition("/")[2].removesuffix(".py")
    if name == "test_openai_vllm":
        return "vllm"
    if name in ENGINE_SHARERS:
        return "transformers_client"
    engine = ENGINE.search(rest) if name in SHARERS else None
    return engine[1] if engine else path


def order(items: list[pytest.Item]) -> None:
    """The longest first, so that the rest evens the processes out: what many share, then LONG."""
    items.sort(key=lambda item: _rank(scope_of(item.nodeid)))


def _rank(scope: str) -> int:
    if not scope.endswith(".py"):
        return 0
    return 1 if scope.rpartition("/")[2].removesuffix(".py") in LONG else 2


class EngineScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Scope by scope."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)
