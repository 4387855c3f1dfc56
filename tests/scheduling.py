"""Which tests run in the same process, one after the other, when files run side by side."""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling

SHARERS = ("test_infer", "test_logprobs", "test_openai", "test_openai_vllm", "test_fuzz")
"""Files whose tests use `shared_pool`: they are cut by engine."""
ENGINE_SHARERS = ("test_transformers", "test_transformers_beside", "test_transformers_guides")
"""Files whose tests use `transformers_client`."""
ENGINE = re.compile(r"[\[-](vllm|transformers|llama_cpp)\b")


class EngineScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """File by file, and all that shares an engine's pool together."""

    def _split_scope(self, nodeid: str) -> str:
        path, _, rest = nodeid.partition("::")
        name = path.rpartition("/")[2].removesuffix(".py")
        if name == "test_openai_vllm":
            return "vllm"
        if name in ENGINE_SHARERS:
            return "transformers_client"
        engine = ENGINE.search(rest) if name in SHARERS else None
        return engine[1] if engine else path
