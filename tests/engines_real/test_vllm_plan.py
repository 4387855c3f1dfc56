"""The planner's KV cache against what vLLM itself logs, on the CPU. test_vllm.py has a quick look
at the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpupool.planner.checkpoint import read_checkpoint
from gpupool.planner.kv_cache import Cache
from tests.demo_model import model_folder
from tests.plan_models import PUBLISHED

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(300)]

CODE = """
import os, sys
from gpupool.engines.vllm import VllmEngine
from gpupool.partition import Slice
from gpupool.settings import Settings

settings = Settings(model_name=sys.argv[1], infer_type="vllm", engine_args=tuple(sys.argv[2:]))
engine = VllmEngine(settings, Slice(0, (), tuple(sorted(os.sched_getaffinity(0)))))
engine.load(lambda phase, fraction: None)
engine.die()
"""
OWN_NUMBERS = """
import json, sys, tempfile
import torch
import vllm.config
from pathlib import Path
from transformers import AutoConfig
from vllm.transformers_utils import model_arch_config_convertor as arch
from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec

found = {}
for name, values in json.load(sys.stdin).items():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(values))
        config = AutoConfig.from_pretrained(folder)
        kinds = arch.MODEL_ARCH_CONFIG_CONVERTORS
        kind = kinds.get(config.model_type, arch.ModelArchConfigConvertorBase)
        read = kind(config, config.get_text_config())
        if read.is_deepseek_mla():
            spec, heads = MLAAttentionSpec, 1
        else:
            spec, heads = FullAttentionSpec, read.get_total_num_kv_heads()
        page = spec(
            block_size=16, num_kv_heads=heads, head_size=read.get_head_size(), dtype=torch.bfloat16
        )
        found[name] = page.page_size_bytes // 16 * read.get_num_hidden_layers()
print(json.dumps(found))
"""
LOGGED = re.compile(r"KV cache size: ([\d,]+) tokens")
BLOCK_SIZE = 128  # vLLM's own on the CPU
IN_FLIGHT = 1024


def log_of(model: Path, length: int, num_bytes: int, *more: str) -> str:
    arguments = ["--enforce-eager", "--max-model-len", str(length), "--max-num-seqs", "4"]
    arguments += ["--kv-cache-memory-bytes", str(num_bytes)]
    arguments += ["--max-num-batched-tokens", str(IN_FLIGHT), *more]
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(model), *arguments],
        env=os.environ | {"VLLM_TARGET_DEVICE": "cpu"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def logged_tokens(log: str) -> int:
    found = LOGGED.search(log)
    assert found is not None, log[-3000:]
    return int(found[1].replace(",", ""))


def planned_tokens(model: Path, length: int, num_bytes: int) -> int:
    subject = read_checkpoint(str(model)).subject
    cache = Cache(subject.model, 2, block_size=BLOCK_SIZE, in_flight_tokens=IN_FLIGHT)
    return cache.num_tokens(num_bytes, length)


def test_vllm_has_room_for_as_many_tokens_as_planned() -> None:
    length, num_bytes = 8192, 300_000_000
    log = log_of(model_folder(), length, num_bytes)
    assert logged_tokens(log) == planned_tokens(model_folder(), length, num_bytes)


def test_a_token_takes_as_many_bytes_as_vllm_gives_it() -> None:
    configs = {name: published.config for name, published in PUBLISHED.items()}
    done = subprocess.run(
        [sys.executable, "-c", OWN_NUMBERS],
        input=json.dumps(configs),
        env=os.environ | {"VLLM_TARGET_DEVICE": "cpu"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    ours = {name: published.kv_bytes_per_token for name, published in PUBLISHED.items()}
    assert theirs == ours


def tiny(folder: Path, **config: Any) -> Path:
    """A model of random weights, with the demo model's tokenizer."""
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"head_dim": 32, "intermediate_size": 256, "vocab_size": 49152}
    config |= {"max_position_embeddings": 8192, "torch_dtype": "bfloat16", "sliding_window": 512}
    (folder / "config.json").write_text(json.dumps(sizes | config))
    for file in model_folder().glob("*token*"):
        shutil.copy(file, folder)
    return folder


SLIDING = {
    "every layer slides": {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "num_hidden_layers": 3,
    },
    "most layers slide": {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "num_hidden_layers": 7,
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 32,
    },
}


@pytest.mark.parametrize("config", SLIDING.values(), ids=SLIDING)
def test_vllm_has_room_for_as_many_tokens_as_planned_with_windows(
    config: dict[str, Any], tmp_path: Path
) -> None:
    model, length, num_bytes = tiny(tmp_path, **config), 4096, 64 << 20
    log = log_of(model, length, num_bytes, "--load-format", "dummy")
    assert logged_tokens(log) == planned_tokens(model, length, num_bytes)
