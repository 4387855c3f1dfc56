"""Log-probabilities of given tokens by a plain forward pass, piece by piece (worker process)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from gpupool.engines.sampling import TopLogprobs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Step = Callable[[], None]

MAX_LOGITS = {"cuda": 1 << 27, "cpu": 1 << 25}
"""32-bit logits held at once: 512 MiB on a GPU, 128 MiB on the CPU."""

GROUP_TOKENS = {"cuda": 1 << 14, "cpu": 1 << 10}
"""Tokens scored in one pass, padding included."""


def next_logits(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], first: int, on_step: Step
) -> Iterator[tuple[int, torch.Tensor]]:
    """(position, 32-bit logits [sequences, n, vocabulary]) for what follows, from `first` on.

    The sequences are padded at the end, where no earlier token can see it, and cut into pieces
    that see the ones before them through a cache: the logits of a long prompt over a large
    vocabulary never exist at once. on_step is called between pieces and may raise to give up.
    Must run under torch.no_grad().
    """
    import torch
    from transformers import DynamicCache

    device = model.device
    row = model.config.get_text_config().vocab_size * len(sequences)
    size = max(16, MAX_LOGITS.get(device.type, MAX_LOGITS["cpu"]) // row)
    length = max(len(tokens) for tokens in sequences)
    padded = [[*tokens, *[0] * (length - len(tokens))] for tokens in sequences]
    ids = torch.tensor(padded, device=device)
    cache = DynamicCache(config=model.config)
    for start in range(0, length - 1, size):
        on_step()
        end = min(start + size, length - 1)
        keep = end - max(start, first)
        piece = ids[:, start:end]
        output = model(piece, past_key_values=cache, use_cache=True, logits_to_keep=max(keep, 1))
        if keep > 0:
            yield end - keep, output.logits[:, -keep:].float()


def score_prompts(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], k: int, on_step: Step
) -> list[list[TopLogprobs]]:
    """For each token after the first, of each prompt: its log-probability and the k best."""
    import torch

    found: list[list[TopLogprobs]] = [[] for _ in prompts]
    with torch.no_grad():
        for position, logits in next_logits(model, prompts, 0, on_step):
            for prompt, values, rows in zip(prompts, found, logits, strict=True):
                after = prompt[position + 1 : position + 1 + len(rows)]
                if after:
                    values += _rank(rows[: len(after)], after, k)
    return found


def _rank(logits: torch.Tensor, tokens: Sequence[int], k: int) -> list[TopLogprobs]:
    """A row of logits per token. A token among the best has the very same value there."""
    whole = logits.logsumexp(-1, keepdim=True)
    wanted = logits.new_tensor(tokens).long()[:, None]
    own = (logits.gather(-1, wanted) - whole)[:, 0].tolist()
    if not k:
        return [(value, [], []) for value in own]
    best = logits.topk(min(k, logits.shape[-1]))
    values = (best.values - whole).tolist()
    return list(zip(own, best.indices.tolist(), values, strict=True))


def top_logprobs(
    model: PreTrainedModel, tokens: Sequence[int], first: int, k: int, on_step: Step
) -> list[TopLogprobs]:
    """For each of tokens[first:]: its log-probability and the k best at its place."""
    import torch

    found: list[TopLogprobs] = []
    with torch.no_grad():
        for position, logits in next_logits(model, [tokens], first - 1, on_step):
            rows = logits[0]
            found += _rank(rows, tokens[position + 1 : position + 1 + len(rows)], k)
    return found
