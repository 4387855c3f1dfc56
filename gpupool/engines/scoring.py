"""Log-probabilities of given tokens by a plain forward pass, piece by piece (worker process)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from gpupool.engines.sampling import TopLogprobs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

MAX_LOGITS = {"cuda": 1 << 27, "cpu": 1 << 25}
"""32-bit logits held at once: 512 MiB on a GPU, 128 MiB on the CPU."""


def next_logits(
    model: PreTrainedModel, tokens: Sequence[int], first: int, on_step: Callable[[], None]
) -> Iterator[tuple[int, torch.Tensor]]:
    """(position, 32-bit logits [n, vocabulary]) for the successors of tokens[first:-1].

    The sequence is cut into pieces that see the ones before them through a cache, so the logits
    of a long prompt over a large vocabulary never exist at once. on_step is called between
    pieces and may raise to give up. Must run under torch.no_grad().
    """
    import torch
    from transformers import DynamicCache

    vocabulary = model.config.get_text_config().vocab_size
    size = max(16, MAX_LOGITS.get(model.device.type, 1 << 25) // vocabulary)
    ids = torch.tensor([tokens], device=model.device)
    cache = DynamicCache(config=model.config)
    last = len(tokens) - 1
    for start in range(0, last, size):
        on_step()
        end = min(start + size, last)
        keep = end - max(start, first)
        output = model(
            ids[:, start:end],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=max(keep, 1),
        )
        if keep > 0:
            yield end - keep, output.logits[0, -keep:].float()


def score_prompt(
    model: PreTrainedModel, prompt: Sequence[int], on_step: Callable[[], None]
) -> tuple[float, ...]:
    """The log-probability of each prompt token after the first."""
    import torch

    found: list[float] = []
    with torch.no_grad():
        for position, logits in next_logits(model, prompt, 0, on_step):
            after = prompt[position + 1 : position + 1 + len(logits)]
            own = logits.gather(-1, torch.tensor(after, device=logits.device)[:, None])[:, 0]
            found += (own - logits.logsumexp(-1)).tolist()
    return tuple(found)


def top_logprobs(
    model: PreTrainedModel,
    tokens: Sequence[int],
    first: int,
    k: int,
    on_step: Callable[[], None],
) -> list[TopLogprobs]:
    """For each of tokens[first:]: its log-probability and the k best at its place."""
    import torch

    found: list[TopLogprobs] = []
    with torch.no_grad():
        for position, logits in next_logits(model, tokens, first - 1, on_step):
            logprobs = logits.log_softmax(-1)
            after = tokens[position + 1 : position + 1 + len(logits)]
            own = logprobs.gather(-1, torch.tensor(after, device=logits.device)[:, None])[:, 0]
            best = logprobs.topk(k)
            rows = (own.tolist(), best.indices.tolist(), best.values.tolist())
            found += zip(*rows, strict=True)
    return found
