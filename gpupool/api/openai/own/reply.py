"""What the handlers answer, as JSON (pure; worker process)."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel


def render(content: BaseModel | dict[str, Any]) -> bytes:
    """Of a model, the fields that were set. `warnings`: streams have nulls where the types of the
    openai package have none."""
    if isinstance(content, BaseModel):
        return content.model_dump_json(exclude_unset=True, warnings=False).encode()
    return json.dumps(content, ensure_ascii=False).encode()
