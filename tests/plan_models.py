"""Public models by their configuration, with published parameter counts (plan_models.json)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpupool.planner.config import read_config
from gpupool.planner.model import Model


@dataclass(frozen=True)
class Published:
    """One public model."""

    name: str
    parameters: int  # of the safetensors files on its page, tied weights once
    kv_bytes_per_token: int  # in 16 bits, while the token is in every window
    kv_source: str
    config: dict[str, Any]

    def model(self, **changes: Any) -> Model:
        return read_config(self.config | changes)


PUBLISHED = {
    found["name"]: Published(**found)
    for found in json.loads(Path(__file__).with_suffix(".json").read_text())
}


def model(name: str, **changes: Any) -> Model:
    """The model whose name ends so, with changes to its config.json."""
    [found] = [entry for full, entry in PUBLISHED.items() if full.endswith(f"/{name}")]
    return found.model(**changes)
