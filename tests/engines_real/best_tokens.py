"""What every real engine must give as the best tokens at the places of a prompt."""

from __future__ import annotations

import queue
from functools import cache
from typing import Any

import pytest

from gpupool.engines.base import Engine, Event, Scored
from tests.demo_model import model_folder

TEXT = "The capital of Österreich is Vienna, 雪 falls."
TOP = 3


@cache
def network() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float32)


def score(engine: Engine, tokens: list[int], top: int) -> Scored:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    engine.score(f"best-tokens-{top}", tokens, events.put, top)
    event = events.get(timeout=120)
    assert isinstance(event, Scored), event
    return event


def check_best_tokens(engine: Engine) -> None:
    """Against one forward pass; and the prompt's own value is the very same among the best."""
    import torch

    tokens = engine.tokenize(TEXT)
    found = score(engine, tokens, TOP)
    with torch.no_grad():
        rows = network()(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
    assert len(found.top) == len(tokens) - 1
    for row, token, own, top in zip(rows, tokens[1:], found.logprobs, found.top, strict=True):
        best = row.topk(TOP)
        assert [other.token_id for other in top] == best.indices.tolist()
        assert [other.logprob for other in top] == pytest.approx(best.values.tolist(), abs=1e-3)
        assert {other.logprob for other in top if other.token_id == token} <= {own}
    assert any(token in {other.token_id for other in top}
               for token, top in zip(tokens[1:], found.top, strict=True))  # fmt: skip
    assert score(engine, tokens, 0).top == ()
