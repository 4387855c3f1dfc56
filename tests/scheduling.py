"""Which tests run in the same process, one after the other, when files run side by side."""

from __future__ import annotations

import re

import pytest
from xdist.scheduler import LoadScopeScheduling

SHARERS = ("test_infer", "test_logprobs", "test_openai", "test_openai_vllm", "test_fuzz")
"""Files whose tests use `shared_pool`: they are cut by engine."""
ENGINE_SHARERS = ("test_transformers", "test_transformers_beside", "test_transformers_guides")
"""Files whose tests use `transformers_client`."""
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
    """What many share takes longest, so it comes first, and the files even the processes out."""
    items.sort(key=lambda item: scope_of(item.nodeid).endswith(".py"))


class EngineScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Scope by scope."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)
