"""Does one worker on so many GPUs have room: weights, overhead, KV cache, per GPU. Pure.

What vLLM does (v1/worker/gpu_worker.py): of each GPU's memory it takes gpu_memory_utilization,
runs one step as large as any will be, and gives what is left to the KV cache. The overhead here
is an estimate, docs/planner.md says of what; weights and cache are counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from gpupool.planner.dtypes import dtype_bytes, kv_value_bytes
from gpupool.planner.kv_cache import Cache
from gpupool.planner.model import Model
from gpupool.planner.split import padded_vocabulary, shared_fraction, weight_bytes

GIB = 1 << 30
MIB = 1 << 20

CONTEXT_BYTES = 512 * MIB  # CUDA's context and the libraries' workspaces
NCCL_BYTES = 1 * GIB  # buffers of the collectives, with more than one GPU
LOGIT_BYTES = 36  # of one logit while tokens are drawn: float32 copies, sorted, with indices
# vLLM logged 1.26 GiB for 256 rows of 128256 (vllm-project/vllm#10511) and of 152064 (#15815).
GRAPH_BYTES_PER_LAYER = 12 * MIB  # CUDA graphs of all batch sizes
UTILIZATION = 0.92  # vLLM's own share of a GPU's memory
MAX_TOKENS = 1 << 40  # no context and no batch is longer
TYPICAL_LENGTH = 2048  # tokens of a request, where nobody says how many
DOUBT = 0.5  # the overhead may be so much more or less
MEASURED_DOUBT = 0.1  # after a load of the same kind


def gib(num_bytes: float) -> str:
    """Bytes as people read them."""
    return f"{num_bytes / GIB:.1f} GiB"


class Verdict(Enum):
    """Whether a worker will load."""

    FITS = "fits"
    TIGHT = "tight"  # it depends on the overhead, which is an estimate
    FAILS = "fails"  # it cannot, whatever the overhead is


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU as the planner sees it."""

    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Ask:
    """What a worker is to do; None: as the model or vLLM would have it."""

    max_model_len: int | None = None
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    gpu_memory_utilization: float = UTILIZATION
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    typical_length: int = TYPICAL_LENGTH  # for the number of concurrent requests
    is_eager: bool = False  # no CUDA graphs
    quantization: str | None = None  # what makes 16-bit weights smaller while they load


@dataclass(frozen=True, slots=True)
class Stored:
    """The weights as they are in the files, which are surer than the configuration."""

    num_bytes: int  # in memory, all of them
    num_parameters: int | None = None


@dataclass(frozen=True, slots=True)
class Overhead:
    """An estimate of all that is neither weights nor KV cache, on each GPU."""

    context: int  # of CUDA
    step: int  # one step's activations, or the logits of its sequences
    graphs: int
    collectives: int

    @property
    def num_bytes(self) -> int:
        """All of it."""
        return self.context + self.step + self.graphs + self.collectives


@dataclass(frozen=True, slots=True)
class Fit:
    """One worker on some GPUs of one kind; all bytes per GPU."""

    num_gpus: int
    budget_bytes: int
    weights_bytes: int
    estimated: Overhead
    measured_bytes: int | None  # of the overhead, where a load was measured
    max_model_len: int
    cache: Cache

    @property
    def overhead_bytes(self) -> int:
        """All that is neither weights nor KV cache: as measured, else as estimated."""
        return self.estimated.num_bytes if self.measured_bytes is None else self.measured_bytes

    @property
    def doubt_bytes(self) -> int:
        """How much more the overhead may be."""
        if self.measured_bytes is None:
            return int(self.estimated.num_bytes * DOUBT)
        return int(self.measured_bytes * MEASURED_DOUBT)

    @property
    def kv_bytes(self) -> int:
        """What is left for the KV cache; negative when there is not even that."""
        return self.budget_bytes - self.weights_bytes - self.overhead_bytes

    @property
    def request_bytes(self) -> int:
        """The KV cache of one request of the full length."""
        return int(self.cache.bytes_per_request(self.max_model_len))

    @property
    def verdict(self) -> Verdict:
        """Sure only of what is counted: FAILS holds without any overhead."""
        needed = self.weights_bytes + self.request_bytes
        if needed > self.budget_bytes:
            return Verdict.FAILS
        is_sure = needed + self.overhead_bytes + self.doubt_bytes <= self.budget_bytes
        return Verdict.FITS if is_sure else Verdict.TIGHT

    @property
    def safe_length(self) -> int:
        """The longest context that fits even if the overhead is more than estimated, as a round
        number."""
        longest = self.cache.longest(
            self.kv_bytes - self.doubt_bytes, self.cache.model.max_positions
        )
        return longest if longest < 1024 else longest // 1024 * 1024

    @property
    def missing_bytes(self) -> int:
        """By how much one full request does not fit, with the overhead as estimated."""
        return max(self.request_bytes - self.kv_bytes, 0)

    @property
    def num_tokens(self) -> int:
        """Tokens of KV cache of one replica."""
        return self.cache.num_tokens(self.kv_bytes, self.max_model_len)

    def num_requests(self, length: int) -> float:
        """Requests of so many tokens that have room at once."""
        return self.cache.num_requests(self.kv_bytes, min(length, self.max_model_len))

    @property
    def longest(self) -> int:
        """The longest context that there is room for."""
        return self.cache.longest(self.kv_bytes, self.cache.model.max_positions)


def fit(
    model: Model,
    card: Card,
    num_gpus: int,
    ask: Ask,
    *,
    stored: Stored | None = None,
    measured_overhead: int | None = None,
) -> Fit:
    """A worker of `num_gpus` such cards. What was measured after a load of the same kind stands
    in for the estimate."""
    ask = with_defaults(ask, card)
    assert ask.max_num_batched_tokens is not None
    weights = weight_bytes(model, num_gpus)
    if stored is not None:
        weights = int(stored.num_bytes * shared_fraction(model, num_gpus))
    cache = Cache(
        model,
        kv_value_bytes(ask.kv_cache_dtype, model.dtype),
        num_gpus,
        in_flight_tokens=ask.max_num_batched_tokens,
    )
    return Fit(
        num_gpus=num_gpus,
        budget_bytes=int(card.total_bytes * ask.gpu_memory_utilization),
        weights_bytes=weights,
        estimated=overhead(model, num_gpus, ask),
        measured_bytes=measured_overhead,
        max_model_len=ask.max_model_len or model.max_positions,
        cache=cache,
    )


def with_defaults(ask: Ask, card: Card) -> Ask:
    """vLLM's own choice of batch sizes for a server on this card (engine/arg_utils.py)."""
    is_large = card.total_bytes >= 70 * GIB and "A100" not in card.name.upper()
    tokens = 16384 if card.total_bytes >= 160 * GIB else 8192 if is_large else 2048
    return replace(
        ask,
        max_num_seqs=ask.max_num_seqs or (1024 if is_large else 256),
        max_num_batched_tokens=ask.max_num_batched_tokens or tokens,
    )


def overhead(model: Model, num_gpus: int, ask: Ask) -> Overhead:
    """One step has max_num_batched_tokens (the residual twice, queries, keys and values, gate and
    up with their product), then the logits of max_num_seqs rows."""
    assert ask.max_num_batched_tokens is not None
    assert ask.max_num_seqs is not None
    width = 4 * model.hidden_size + 3 * model.intermediate_size // num_gpus
    step = ask.max_num_batched_tokens * width * dtype_bytes(model.dtype)
    logits = ask.max_num_seqs * padded_vocabulary(model) * LOGIT_BYTES
    return Overhead(
        context=CONTEXT_BYTES,
        step=max(step, logits),
        graphs=0 if ask.is_eager else GRAPH_BYTES_PER_LAYER * model.num_layers,
        collectives=NCCL_BYTES if num_gpus > 1 else 0,
    )
