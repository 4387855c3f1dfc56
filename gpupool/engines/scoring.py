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
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], on_step: Step
) -> list[tuple[float, ...]]:
    """The log-probability of each token after the first, of each prompt."""
    import torch

    found: list[list[float]] = [[] for _ in prompts]
    with torch.no_grad():
        for position, logits in next_logits(model, prompts, 0, on_step):
            for prompt, values, rows in zip(prompts, found, logits, strict=True):
                after = prompt[position + 1 : position + 1 + len(rows)]
                if after:
                    own = rows[: len(after)]
                    wanted = torch.tensor(after, device=rows.device)[:, None]
                    picked = own.gather(-1, wanted)[:, 0] - own.logsumexp(-1)
                    values += picked.tolist()
    return [tuple(values) for values in found]


def top_logprobs(
    model: PreTrainedModel, tokens: Sequence[int], first: int, k: int, on_step: Step
) -> list[TopLogprobs]:
    """For each of tokens[first:]: its log-probability and the k best at its place."""
    import torch

    found: list[TopLogprobs] = []
    with torch.no_grad():
        for position, logits in next_logits(model, [tokens], first - 1, on_step):
            logprobs = logits[0].log_softmax(-1)
            after = tokens[position + 1 : position + 1 + len(logprobs)]
            wanted = torch.tensor(after, device=logprobs.device)[:, None]
            best = logprobs.topk(k)
            own = logprobs.gather(-1, wanted)[:, 0].tolist()
            found += zip(own, best.indices.tolist(), best.values.tolist(), strict=True)
    return found
