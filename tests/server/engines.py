"""The three real engines as pools with the demo model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import pytest

from gpupool.capabilities import ENGINES
from gpupool.setting_types import HOSTED
from tests import demo_model
from tests.pool import Pool

NAMES = tuple(name for name in ENGINES if name != HOSTED)
ON_RAY = pytest.param("llama_cpp-ray", marks=pytest.mark.slow)
"""The same tests where Ray runs the pool."""
MODEL = "smol"  # the name of the model that all tests share
# 16-bit keys and values, and the fused attention that rounds to them, are llama.cpp's default.
LLAMA_CPP_EXACT = ("--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off")


@contextmanager
def engine_pool(
    name: str,
    tmp_path: Path,
    *flags: str,
    env: Mapping[str, str] = MappingProxyType({}),
    engine_args: Sequence[str] = (),
    is_exact: bool = True,
) -> Iterator[Pool]:
    """A ready pool of one worker, in fp32; where nobody looks at the numbers, llama.cpp is
    several times faster with the small weights."""
    arguments = {
        "vllm": ["--dtype", "float32", "--enforce-eager", "--max-model-len", "2048"],
        "transformers": ["--dtype", "float32", "--max-model-len", "2048"],
        "llama_cpp": [
            "--ctx-size",
            "16384",
            "--parallel",
            "8",
            *(LLAMA_CPP_EXACT if is_exact else ()),
        ],
    }
    gguf = demo_model.f32_gguf() if is_exact else demo_model.gguf_path()
    model = gguf if name == "llama_cpp" else demo_model.model_folder()
    own = [
        "--model_name",
        str(model),
        "--infer_type",
        name,
        *flags,
        "--",
        *arguments[name],
        *engine_args,
    ]
    with Pool(tmp_path, *own, env={"VLLM_CPU_KVCACHE_SPACE": "1", **env}) as pool:
        yield pool.wait_ready(deadline_s=240)
