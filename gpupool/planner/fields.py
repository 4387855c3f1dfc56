"""A config.json whose fields go by several names. Pure; any process."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from gpupool.errors import ConfigError

NAMES = {
    "hidden_size": ("n_embd", "d_model", "dim"),
    "num_hidden_layers": ("n_layer", "num_layers", "n_layers"),
    "num_attention_heads": ("n_head", "n_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv", "multi_query_group_num"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size"),
    "max_position_embeddings": (
        "n_positions",
        "max_seq_len",
        "seq_length",
        "model_max_length",
        "n_ctx",
    ),
    "num_experts": ("num_local_experts", "n_routed_experts", "moe_num_experts"),
    "torch_dtype": ("dtype",),
    "vocab_size": ("padded_vocab_size",),
}
"""Other names of a field, in older families and in newer versions of transformers."""

MAX_SIZE = 1 << 32
MAX_LAYERS = 10_000
"""No model is larger; what says so is damaged, and counting it would take all memory."""

TEXT = ("text_config", "llm_config", "language_config")


class Fields:
    """A mapping read by the names that most families use."""

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        self._values = values
        self._where = where

    def get(self, name: str) -> Any:
        """The field, or None where it is absent or null."""
        for spelling in (name, *NAMES.get(name, ())):
            if (value := self._values.get(spelling)) is not None:
                return value
        return None

    def size(self, name: str, default: int | None = None) -> int:
        """A number that must be positive; ConfigError where it is not, or missing."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        number = _number(value)
        most = MAX_LAYERS if name == "num_hidden_layers" else MAX_SIZE
        if number is None or not 1 <= number <= most:
            found = "is missing" if value is None else f"is {str(value)[:40]!r}"
            raise ConfigError(
                f"{self._where}: {name} {found}; the planner needs a number from 1 to {most} there"
            )
        return number

    def count(self, name: str) -> int:
        """A number that may be absent: 0 then."""
        number = max(_number(self.get(name)) or 0, 0)
        if number > MAX_SIZE:
            raise ConfigError(f"{self._where}: {name} is more than any model has ({MAX_SIZE})")
        return number

    def factor(self, name: str) -> float:
        """A number by which another grows; 1 where it is absent or cannot be."""
        value = self.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if is_number and 1 <= value <= MAX_SIZE else 1

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(name)
        return default if value is None else bool(value)

    def text(self, name: str, default: str = "") -> str:
        """A string."""
        value = self.get(name)
        return value if isinstance(value, str) else default

    def inner(self, name: str) -> Fields | None:
        """A mapping within, such as vision_config."""
        value = self.get(name)
        return Fields(value, f"{self._where}: {name}") if isinstance(value, Mapping) else None

    def with_defaults(self, defaults: Mapping[str, Any]) -> Fields:
        """With values for fields that are missing."""
        missing = {name: value for name, value in defaults.items() if self.get(name) is None}
        return Fields({**self._values, **missing}, self._where)

    def text_model(self) -> Fields:
        """The language model of one that also sees or hears: its own mapping over the whole."""
        for name in TEXT:
            if isinstance(value := self.get(name), Mapping):
                return Fields({**self._values, **value}, f"{self._where}: {name}")
        return self


def _number(value: Any) -> int | None:
    if isinstance(value, float):
        return int(value) if isfinite(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
