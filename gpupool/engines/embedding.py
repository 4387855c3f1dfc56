"""Vectors of texts by mean pooling over a model's last hidden states (worker process)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def embed_prompts(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], on_step: Callable[[], None]
) -> list[tuple[float, ...]]:
    """One vector of length 1 for each prompt. Padding stands at the end, where no earlier token
    can see it."""
    import torch

    on_step()
    longest = max(len(prompt) for prompt in prompts)
    padded = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
    found = []
    with torch.no_grad():
        ids = torch.tensor(padded, device=model.device)
        states = model.get_decoder()(ids, use_cache=False).last_hidden_state
        for row, prompt in zip(states, prompts, strict=True):
            mean = row[: len(prompt)].float().mean(0)
            found.append(tuple(torch.nn.functional.normalize(mean, dim=0).tolist()))
    return found
