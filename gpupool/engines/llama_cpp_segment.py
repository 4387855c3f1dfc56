"""What llama.cpp is asked for the next part of a sequence (pure).

llama.cpp's settings hold for a whole request, and its presence and frequency penalties count the
prompt's tokens, which ours do not. So one sequence may take several requests, segments, each of
which goes on where the last one ended: the bias of a segment undoes what the prompt adds, and
the segment ends where that bias would change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from gpupool.engines.base import SamplingParams
from gpupool.errors import BadRequest

NO_SEED = 0xFFFFFFFF
"""llama.cpp takes this seed for "any"."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One request to llama.cpp, and what ends it early."""

    body: dict[str, Any]
    until_length: int | None  # total of generated tokens from which other rules hold
    until_tokens: frozenset[int]  # tokens whose generation changes the bias

    def ends_with(self, num_generated: int, token: int) -> bool:
        """Whether the next token needs a new segment."""
        if self.until_length is not None and num_generated >= self.until_length:
            return True
        return token in self.until_tokens


def check_combination(params: SamplingParams) -> None:
    """llama.cpp scales by the repetition penalty what undoes the others, so not both."""
    others = params.presence_penalty or params.frequency_penalty
    if others and params.repetition_penalty != 1.0:
        raise BadRequest(
            "llama_cpp takes repetition_penalty or presence_penalty and frequency_penalty, not "
            "both; leave one out, or use --infer_type vllm or transformers",
            param="repetition_penalty",
        )


def plan_segment(
    prompt: Sequence[int],
    generated: Sequence[int],
    params: SamplingParams,
    seed: int,
    kept_special: Sequence[str] = (),
) -> Segment:
    """The request for what follows prompt and generated."""
    is_below_minimum = len(generated) < params.min_tokens
    bias = Counter(params.logit_bias)
    watched = _undo_prompt(prompt, generated, params, bias)
    banned = params.stop_token_ids if is_below_minimum else ()
    body: dict[str, Any] = {
        "prompt": [*prompt, *generated],
        "n_predict": params.max_tokens - len(generated),
        "seed": fold_seed(seed, len(generated)),
        "ignore_eos": is_below_minimum,
        "return_tokens": True,
        "return_progress": True,
        **samplers(params, len(prompt) + params.max_tokens),
    }
    biases = [*bias.items(), *((token, False) for token in banned)]
    if biases:
        body["logit_bias"] = biases
    if params.logprobs is not None:
        body["n_probs"] = max(params.logprobs, 1)
    if kept_special:
        body["preserved_tokens"] = list(kept_special)
    return Segment(body, params.min_tokens if is_below_minimum else None, watched)


def fold_seed(seed: int, position: int) -> int:
    """One of llama.cpp's 32-bit seeds for the tokens from a position on."""
    digest = sha256(f"{seed}:{position}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % NO_SEED


def _undo_prompt(
    prompt: Sequence[int], generated: Sequence[int], params: SamplingParams, bias: Counter[int]
) -> frozenset[int]:
    """Add to the bias what the prompt's tokens lose; the tokens for which that will change."""
    presence, frequency = params.presence_penalty, params.frequency_penalty
    if not presence and not frequency:
        return frozenset()
    counts = Counter(prompt)
    unseen = frozenset(counts).difference(generated)
    for token, times in counts.items():
        bias[token] += frequency * times + (presence if token in unseen else 0.0)  # type: ignore[assignment]
    return unseen if presence else frozenset()


def samplers(params: SamplingParams, length: int) -> dict[str, Any]:
    """The chain, named step by step, so that none of llama.cpp's defaults applies; penalties look
    back `length` tokens. The order is vLLM's: penalties, temperature, min_p, top_k, top_p.
    """
    chain: dict[str, dict[str, Any]] = {}
    if params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty:
        chain["penalties"] = {
            "repeat_last_n": length,
            "repeat_penalty": params.repetition_penalty,
            "presence_penalty": params.presence_penalty,
            "frequency_penalty": params.frequency_penalty,
        }
    if params.temperature == 0:
        chain["top_k"] = {"top_k": 1}
    else:
        chain["temperature"] = {"temperature": params.temperature}
        if params.min_p > 0:
            chain["min_p"] = {"min_p": params.min_p}
        if params.top_k > 0:
            chain["top_k"] = {"top_k": params.top_k}
        if params.top_p < 1:
            chain["top_p"] = {"top_p": params.top_p}
    values = {name: value for step in chain.values() for name, value in step.items()}
    return {"samplers": list(chain), **values}
