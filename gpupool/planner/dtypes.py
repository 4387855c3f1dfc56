"""How many bits a weight or a cached value takes. Pure; any process.

Sources: the quantisation configs of transformers, vLLM's STR_DTYPE_TO_TORCH_DTYPE.
"""

from __future__ import annotations

from gpupool.errors import ConfigError
from gpupool.nearest import nearest_hint
from gpupool.planner.fields import Fields
from gpupool.planner.model import Quantization

FLOAT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "half": 2, "float": 4}
KV_BYTES: dict[str, float] = {
    "auto": 0,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "fp8": 1,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
}
"""Bytes of one cached value; auto: as the model's dtype."""

LOADED_AS_DTYPE = ("F32", "F16", "BF16", "F64")
"""What an engine turns into the model's dtype; packed and 8-bit values stay as they are."""


def dtype_bytes(dtype: str) -> int:
    """Bytes of one weight that is not quantised."""
    name = dtype.removeprefix("torch.")
    if name not in FLOAT_BYTES:
        raise ConfigError(
            f"--dtype {dtype!r} is no type of weights{nearest_hint(name, FLOAT_BYTES)}; use "
            "auto, bfloat16, float16 or float32"
        )
    return FLOAT_BYTES[name]


def kv_value_bytes(kv_cache_dtype: str, dtype: str) -> float:
    """Bytes of one value in the KV cache."""
    if kv_cache_dtype not in KV_BYTES:
        raise ConfigError(
            f"--kv_cache_dtype {kv_cache_dtype!r} is not known to the planner"
            f"{nearest_hint(kv_cache_dtype, KV_BYTES)}; use {', '.join(KV_BYTES)}"
        )
    return KV_BYTES[kv_cache_dtype] or dtype_bytes(dtype)


LOADED_BITS = {
    "fp8": 8,
    "fp8_per_tensor": 8,
    "fp8_per_channel": 8,
    "fp8_per_block": 8,
    "mxfp8": 8 + 8 / 32,
}
"""Bits of a weight that vLLM quantises while it loads, by --quantization (config/quantization.py,
_ONLINE_SHORTHANDS)."""


def check_quantization(method: str | None) -> None:
    """ConfigError for one that the planner does not know."""
    if method is not None and method not in LOADED_BITS:
        raise ConfigError(
            f"--quantization {method!r} is not known to the planner"
            f"{nearest_hint(method, LOADED_BITS)}; use {', '.join(LOADED_BITS)}, or nothing for "
            "weights that are stored quantised"
        )


METHODS = (
    *("gptq", "awq", "auto-round", "fp8", "mxfp4", "bitsandbytes"),
    *("compressed_tensors", "modelopt"),
)
"""What read_quantization knows by its weights."""


def read_quantization(fields: Fields) -> Quantization | None:
    """quantization_config, with what scales and zero points add to each weight."""
    found = fields.inner("quantization_config") or fields.inner("compression_config")
    if found is None:
        return None
    method = found.text("quant_method").replace("compressed-tensors", "compressed_tensors")
    group = found.count("group_size") or found.count("q_group_size") or None
    if method in ("gptq", "awq", "auto-round"):
        bits = found.count("bits") or found.count("w_bit") or 4
        # A 16-bit scale and a zero point of the weight's own size for every group.
        return Quantization(method, bits + (16 + bits) / (group or 1 << 30), group)
    if method == "fp8":
        block = found.get("weight_block_size")
        size = block[-1] if isinstance(block, list) and block else None
        if not isinstance(size, int) or size < 1:
            return Quantization(method, 8)  # one scale for a whole matrix
        return Quantization(method, 8 + 32 / size**2, size)
    if method.startswith("modelopt"):
        algorithm = found.text("quant_algo") or method
        # NVFP4: 8 bits of scale for 16 weights.
        return Quantization("modelopt", 4 + 8 / 16 if "FP4" in algorithm.upper() else 8)
    if method == "mxfp4":
        return Quantization(method, 4 + 8 / 32, 32)
    if method == "bitsandbytes":
        is_small = found.flag("load_in_4bit") or found.flag("_load_in_4bit")
        # QLoRA (arXiv 2305.14314): 32 bits for 64 weights, 0.127 with the second quantisation.
        extra = 0.127 if found.flag("bnb_4bit_use_double_quant") else 0.5
        return Quantization(method, 4 + extra if is_small else 8)
    if method == "compressed_tensors":
        return _compressed(found)
    return Quantization(method or "unknown", 8)


def _compressed(found: Fields) -> Quantization:
    """compressed-tensors: the first group says how weights are stored."""
    groups = found.inner("config_groups")
    first = groups.inner("group_0") if groups else None
    weights = first.inner("weights") if first else None
    bits = (weights.count("num_bits") if weights else 0) or 8
    group = (weights.count("group_size") if weights else 0) or None
    return Quantization("compressed_tensors", bits + 16 / (group or 1 << 30), group)
