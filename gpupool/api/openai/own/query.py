"""One request of the OpenAI API on its way through a handler (worker process, event loop)."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from gpupool.api.openai.own.runner import Runner
from gpupool.outgoing import Outgoing


@dataclass(frozen=True, slots=True)
class Query:
    """A checked body, and where its answer comes from and goes to."""

    body: dict[str, Any]
    runner: Runner
    reply: Outgoing
    model_name: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def is_stream(self) -> bool:
        """Whether the answer is a stream of events."""
        return bool(self.body.get("stream"))

    @property
    def wants_usage(self) -> bool:
        """Whether the stream's last event tells its usage."""
        return bool((self.body.get("stream_options") or {}).get("include_usage"))

    @property
    def num_choices(self) -> int:
        """Completions of each prompt."""
        return self.body.get("n") or 1
