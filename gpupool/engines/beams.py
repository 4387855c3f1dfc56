"""Beam search by transformers' own `generate`, beside the running batch (worker process)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gpupool.engines.base import SamplingParams
from gpupool.engines.detokenizer import Decode
from gpupool.engines.sampling import Draw

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def search_beams(
    model: PreTrainedModel,
    prompt: Sequence[int],
    params: SamplingParams,
    end_tokens: Sequence[int],
    decode: Decode,
    on_step: Callable[[], None],
) -> list[list[int]]:
    """The tokens of the best completions, best first, each up to its end token.

    on_step is called before every token and may raise to give up.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    config = GenerationConfig(
        max_new_tokens=params.max_tokens,
        num_beams=params.beam_width,
        num_return_sequences=params.num_beams_returned,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
        do_sample=False,
        eos_token_id=list(end_tokens) or None,
        pad_token_id=end_tokens[0] if end_tokens else 0,
    )
    ids = torch.tensor([prompt], device=model.device)
    steps = _Steps(prompt, params, end_tokens, decode, on_step)
    with torch.no_grad():
        output: Any = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            logits_processor=LogitsProcessorList([steps.edit]),
            stopping_criteria=StoppingCriteriaList([steps.is_done]),
        )
    return [_until_end(row[len(prompt) :], end_tokens) for row in output.tolist()]


def render(
    tokens: list[int], params: SamplingParams, end_tokens: Sequence[int], decode: Decode
) -> tuple[str, bool]:
    """The text of a found completion, and whether an end token or a stop string ended it."""
    is_ended = bool(tokens) and tokens[-1] in end_tokens
    text = decode(tokens[:-1] if is_ended else tokens)
    at = min((text.find(stop) for stop in params.stop if stop in text), default=None)
    if at is not None:
        return text[:at], True
    return text, is_ended


def _until_end(tokens: list[int], end_tokens: Sequence[int]) -> list[int]:
    """Without the padding after the end token."""
    ends = [at for at, token in enumerate(tokens) if token in end_tokens]
    return tokens[: ends[0] + 1] if ends else tokens


class _Steps:
    """What happens at each step of one search; transformers calls both methods with all beams."""

    def __init__(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        end_tokens: Sequence[int],
        decode: Decode,
        on_step: Callable[[], None],
    ) -> None:
        self._prompt = prompt
        self._params = params
        self._end_tokens = end_tokens
        self._decode = decode
        self._on_step = on_step

    def edit(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Bias, min_tokens and penalties, on each beam's log-probabilities."""
        self._on_step()
        for beam, tokens in enumerate(input_ids.tolist()):
            draw = Draw(self._params, self._prompt, self._end_tokens)
            draw.edit_after(scores[beam], tokens[len(self._prompt) :])
        return scores

    def is_done(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Which beams have met a stop string."""
        import torch

        stops = self._params.stop
        met = [
            bool(stops) and any(stop in self._decode(row[len(self._prompt) :]) for stop in stops)
            for row in input_ids.tolist()
        ]
        return torch.tensor(met, device=input_ids.device)
